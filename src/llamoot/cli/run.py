"""`llamoot run MODEL -p TEXT`: complete a prompt. Text to stdout, statistics to stderr."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec

from llamoot.agents.files import find_model
from llamoot.agents.model import Model, open_model
from llamoot.agents.types import ChatRequest, Format, Logprob, Sampling, Usage
from llamoot.cli.options import Argument, Option
from llamoot.engine.budget import Settings
from llamoot.errors import BadRequest


def run(
    model: Annotated[str, Argument(help="GGUF file, or the name of a model that is here")],
    prompt: Annotated[str, Option("-p", "--prompt", help="text; - or none: stdin")] = "-",
    n: Annotated[int, Option("-n", help="tokens at most; -1: until it ends")] = 256,
    temp: Annotated[float | None, Option(help="temperature; 0: the likeliest")] = None,
    top_k: Annotated[int | None, Option(help="of the k likeliest only")] = None,
    top_p: Annotated[float | None, Option(help="of the likeliest that reach p")] = None,
    min_p: Annotated[float | None, Option(help="of those at least p times the top")] = None,
    repeat_penalty: Annotated[float | None, Option(help="1: none")] = None,
    seed: Annotated[int | None, Option(help="the same seed, the same text")] = None,
    stop: Annotated[list[str] | None, Option(help="text that ends it; repeatable")] = None,
    grammar: Annotated[str, Option(help="GBNF or Lark: file, or the grammar itself")] = "",
    json_schema: Annotated[str, Option(help="JSON schema: file, or the schema itself")] = "",
    regex: Annotated[str, Option(help="the whole text must match")] = "",
    draft: Annotated[list[str] | None, Option(help="text it probably repeats")] = None,
    lora: Annotated[list[str] | None, Option(help="adapter file, or FILE=SCALE")] = None,
    logprobs: Annotated[int | None, Option(help="alternatives per token, with --json")] = None,
    special: Annotated[bool, Option(help="control tokens in the prompt are meant")] = False,
    echo: Annotated[bool, Option(help="print the prompt first")] = False,
    ctx: Annotated[int, Option(help="context in tokens; 0: what fits")] = 0,
    cache_type: Annotated[str, Option(help="f32, f16 or q8_0")] = "f16",
    threads: Annotated[int, Option(help="0: one per core")] = 0,
    as_json: Annotated[bool, Option("--json", help="print one JSON object")] = False,
) -> None:
    """Complete a prompt with a model, without a chat template."""
    text = sys.stdin.read() if prompt == "-" else prompt
    how = Sampling(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        max_tokens=None if n < 0 else n,
        stop=tuple(stop or ()),
        logprobs=logprobs if as_json else None,
    )
    request = ChatRequest(
        messages=(),
        sampling=how,
        format=constraint(grammar, json_schema, regex),
        drafts=tuple(draft or ()),
        adapters=dict(map(_scaled, lora or ())),
    )
    settings = Settings.of(cache_type, context=ctx, max_seqs=1, threads=threads)
    files = tuple((path, path) for path in request.adapters)
    opened = open_model(find_model(model), replace(settings, adapters=files))
    try:
        _complete(opened, text, request, special, echo, as_json)
    finally:
        opened.close()


def constraint(grammar: str, json_schema: str, regex: str) -> Format | None:
    """The one constraint that was asked for; BadRequest for more than one or a broken schema."""
    given = [name for name in (grammar, json_schema, regex) if name]
    if len(given) > 1:
        raise BadRequest("choose one of --grammar, --json-schema and --regex", "format")
    if json_schema:
        try:
            return Format("schema", json.loads(_text(json_schema)))
        except ValueError as error:
            raise BadRequest(f"--json-schema is not JSON: {error}", "format") from None
    if grammar:
        return Format("grammar", _text(grammar))
    return Format("regex", regex) if regex else None


def _scaled(given: str) -> tuple[str, float]:
    """Path and scale of an adapter."""
    path, mark, scale = given.rpartition("=")
    if not mark or Path(given).is_file():
        return given, 1.0
    try:
        return path, float(scale)
    except ValueError:
        raise BadRequest(f"--lora {given}: '{scale}' is no number", "lora") from None


def _text(given: str) -> str:
    """The content of a file of that name, or the text itself."""
    path = Path(given)
    is_file = len(given) < 256 and "\n" not in given and path.is_file()
    return path.read_text() if is_file else given


def _complete(
    model: Model, text: str, request: ChatRequest, special: bool, echo: bool, as_json: bool
) -> None:
    ids = model.tokenize(text, parse_special=special)
    answer = model.ask(request, ids)
    pieces, logprobs, finish, usage = [], list[Logprob](), "", Usage()
    if echo and not as_json:
        sys.stdout.write(text)
    for piece in model.stream(answer):
        pieces.append(piece.text)
        logprobs += piece.logprobs
        finish, usage = piece.finish_reason or finish, piece.usage or usage
        if not as_json:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    if as_json:
        whole = {"text": "".join(pieces), "finish_reason": finish}
        usage = msgspec.structs.replace(usage, load_s=model.load_s)
        extra = {"logprobs": msgspec.to_builtins(logprobs)} if logprobs else {}
        print(json.dumps({**whole, **extra, "usage": msgspec.to_builtins(usage)}))
        return
    sys.stdout.write("\n")
    print(statistics(usage, model.load_s), file=sys.stderr)


def statistics(usage: Usage, load_s: float) -> str:
    """One line for people: what was computed, and how fast."""
    computed = usage.prompt_tokens - usage.cached_tokens
    later = usage.completion_tokens - 1  # the first comes out of the prompt's evaluation
    return (
        f"[load {load_s:.2f} s · prompt {usage.prompt_tokens} tokens"
        + (f", {usage.cached_tokens} of them cached" if usage.cached_tokens else "")
        + f", {computed / max(usage.prefill_s, 1e-9):.0f}/s · answer {usage.completion_tokens} "
        f"tokens, {max(later, 0) / max(usage.decode_s, 1e-9):.1f}/s]"
    )
