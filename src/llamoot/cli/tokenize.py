"""`llamoot tokenize MODEL TEXT`: text to token ids."""

import json
import sys
from pathlib import Path
from typing import Annotated

from llamoot.agents.files import find_model
from llamoot.cli.options import Argument, Option
from llamoot.gguf.reader import open_gguf
from llamoot.text.tokenizer import Tokenizer, load_tokenizer


def tokenize(
    model: Annotated[str, Argument(help="GGUF file, or the name of a model that is here")],
    text: Annotated[str, Argument(help="the text; - or none: stdin")] = "-",
    bos: Annotated[bool, Option(help="with the tokens a prompt begins and ends with")] = True,
    special: Annotated[bool, Option(help="control tokens in the text are meant")] = False,
    pieces: Annotated[bool, Option(help="one line for each token, with its text")] = False,
    count: Annotated[bool, Option(help="only how many there are")] = False,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> None:
    """Text to token ids."""
    tokenizer = tokenizer_of(find_model(model))
    text = sys.stdin.read() if text == "-" else text
    ids = tokenizer.encode(text, add_special=bos, parse_special=special)
    texts = [tokenizer.piece(i).decode("utf-8", "replace") for i in ids]
    if as_json:
        rows = [{"id": i, "text": text} for i, text in zip(ids, texts)]
        print(json.dumps({"tokens": rows, "count": len(ids)}, ensure_ascii=False))
    elif count:
        print(len(ids))
    elif pieces:
        for i, text in zip(ids, texts):
            print(f"{i:7} {text!r}")
    else:
        print(" ".join(map(str, ids)))


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer of a model file; what is doubtful about it goes to stderr."""
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file.metadata, path)
    for note in tokenizer.notes:
        print(f"note: {note}", file=sys.stderr)
    return tokenizer
