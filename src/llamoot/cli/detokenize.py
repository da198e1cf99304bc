"""`llamoot detokenize MODEL ID…`: token ids to text."""

import json
import re
import sys
from typing import Annotated

from llamoot.agents.files import find_model
from llamoot.cli.options import Argument, Option
from llamoot.cli.tokenize import tokenizer_of
from llamoot.errors import BadRequest


def detokenize(
    model: Annotated[str, Argument(help="GGUF file, or the name of a model that is here")],
    ids: Annotated[
        list[str] | None, Argument(metavar="ID", help="token ids; none: from stdin")
    ] = None,
    special: Annotated[bool, Option(help="show control tokens by their names")] = False,
    as_json: Annotated[bool, Option("--json", help="print JSON")] = False,
) -> None:
    """Token ids to text, separated by spaces or commas, brackets allowed."""
    tokenizer = tokenizer_of(find_model(model))
    words = re.split(r"[\s,\[\]]+", " ".join(ids) if ids else sys.stdin.read())
    numbers = []
    for word in filter(None, words):
        if not word.isdecimal() or int(word) >= tokenizer.size:
            raise BadRequest(f"'{word}' is not a token id from 0 to {tokenizer.size - 1}", "ids")
        numbers.append(int(word))
    text = tokenizer.decode(numbers, skip_special=not special)
    print(json.dumps({"text": text}, ensure_ascii=False) if as_json else text)
