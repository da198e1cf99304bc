"""The command line: finds the verb, imports only its file, and turns errors into one sentence.

Exit codes: 0 answered · 1 internal · 2 wrong usage or configuration · 3 no answer (quorum lost)
· 4 deadline · 5 budget · 6 an agent or model failed · 130 stopped by Ctrl-C.
"""

import difflib
import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import TracebackType

import llamoot
from llamoot import env
from llamoot.cli.options import parse, usage
from llamoot.errors import AgentError, BadRequest, ConfigError, CouncilFailed, LlamootError

VERBS = {
    "ask": "a council answers a question",
    "chat": "talk to a model or a council",
    "serve": "the OpenAI-compatible server and its page",
    "plan": "what a question would cost, before anything is spent",
    "doctor": "does each member of the council answer?",
    "config": "check or explain the configuration",
    "init": "write a commented llamoot.toml from what is found here",
    "runs": "runs that are recorded",
    "show": "one run: rounds, answers, votes, cost",
    "resume": "go on with a run that was killed",
    "replay": "play a run again without asking anyone, or with another chair",
    "export": "a run as Markdown or JSON",
    "run": "complete a prompt with a model",
    "models": "models that are here",
    "pull": "download a model",
    "inspect": "metadata, tensors and memory plan of a model",
    "bench": "speed of a model, or whether a council helps",
    "quantize": "write a model in another type",
    "embed": "embeddings of texts",
    "tokenize": "text to token ids",
    "detokenize": "token ids to text",
    "completion": "the completion script of a shell",
    "logits": "raw scores of a model for given tokens",
}
_NESTED = {("bench", "council"): "evidence"}  # two words, one file
_ADVICE = {
    errno.ENOENT: "; is the path right?",
    errno.EISDIR: "; name a file in it",
    errno.ENOSPC: "; make room and try again",
    errno.EACCES: "; name a place that may be used",
    errno.EROFS: "; name a place that may be written",
}
_CODES = {"deadline": 4, "budget": 5, "cancelled": 130, "config_error": 2, "internal": 1}


def main(args: list[str] | None = None) -> None:
    """The `llamoot` command; never returns."""
    args = sys.argv[1:] if args is None else args
    if not env.get("LLAMOOT_DEBUG"):
        sys.excepthook = _unexpected
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for the whole process)
    sys.exit(_run(args))


def _run(args: list[str]) -> int:
    try:
        code = _verb(args)
        sys.stdout.flush()
        return code
    except LlamootError as error:
        if env.get("LLAMOOT_DEBUG"):
            raise
        return _say(str(error), exit_code(error))
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if env.get("LLAMOOT_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return _say(f"{where}{error.strerror or error}{advice}", 1)


def _verb(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(len(verb) for verb in VERBS)
        rows = "\n".join(f"  {verb:{width}}  {sentence}" for verb, sentence in VERBS.items())
        print(f"llamoot: several language models answer as one\n\n{rows}\n")
        print("`llamoot VERB --help` explains each. Exit codes: 0 answered, 2 wrong usage or")
        print("configuration, 3 no answer, 4 deadline, 5 budget, 6 a model failed, 130 stopped.")
        print('Completion: eval "$(llamoot completion bash)" in ~/.bashrc; zsh and fish likewise.')
        return 0
    if args[0] in ("--version", "-V"):
        print(f"llamoot {llamoot.__version__}")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean '{near[0]}'?" if near else "`llamoot --help` lists them"
        return _say(f"there is no verb '{verb}'; {hint}", 2)
    name = verb
    if rest and (verb, rest[0]) in _NESTED:
        name, verb, rest = _NESTED[verb, rest[0]], f"{verb} {rest[0]}", rest[1:]
    title, called = f"llamoot {verb}", function(name)
    if any(word in ("-h", "--help") for word in rest[: [*rest, "--"].index("--")]):
        print(usage(called, title))
        return 0
    try:
        given = parse(called, rest)
    except BadRequest as error:
        hint = "" if ";" in str(error) else f"; `{title} --help` lists what it takes"
        return _say(f"{error}{hint}", 2)
    return called(**given) or 0


def function(name: str) -> Callable[..., int | None]:
    """The function of the verb's file `name`; it returns an exit code or None. Importing that
    file is what this costs."""
    verb: Callable[..., int | None] = getattr(import_module(f"llamoot.cli.{name}"), name)
    return verb


def exit_code(error: LlamootError) -> int:
    """The exit code for an error; the table stands at the top of this file."""
    if isinstance(error, CouncilFailed):
        return _CODES.get(error.code, 3)
    if isinstance(error, ConfigError | BadRequest):
        return 2
    return 6 if isinstance(error, AgentError) else 1


def _say(message: str, code: int) -> int:
    print(f"llamoot: {message}", file=sys.stderr)
    return code


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A fault of llamoot itself, in one line."""
    what = f"{kind.__name__}: {error}".replace("\n", " ")
    print(f"llamoot: internal error: {what} (LLAMOOT_DEBUG=1 shows where)", file=sys.stderr)
