"""The command line: finds the verb, imports only its file, and turns errors into one sentence.

Exit codes: 0 answered · 1 internal · 2 wrong usage or configuration · 3 no answer (quorum lost)
· 4 deadline · 5 budget · 6 an agent or model failed · 130 stopped by Ctrl-C.
"""

import difflib
import importlib
import os
import sys
from types import TracebackType
from typing import Any

import typer

import llamoot
from llamoot import env
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
_CODES = {"deadline": 4, "budget": 5, "cancelled": 130, "config_error": 2, "internal": 1}
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, wherever typer keeps it


def main(args: list[str] | None = None) -> None:
    """The `llamoot` command; never returns."""
    args = sys.argv[1:] if args is None else args
    if not env.get("LLAMOOT_DEBUG"):
        sys.excepthook = _unexpected
    sys.exit(_run(args))


def _run(args: list[str]) -> int:
    try:
        return _verb(args)
    except LlamootError as error:
        if env.get("LLAMOOT_DEBUG"):
            raise
        return _say(str(error), exit_code(error))
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if env.get("LLAMOOT_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", 1)


def _verb(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(len(verb) for verb in VERBS)
        rows = "\n".join(f"  {verb:{width}}  {sentence}" for verb, sentence in VERBS.items())
        print(f"llamoot: several language models answer as one\n\n{rows}\n")
        print("`llamoot VERB --help` explains each. Exit codes: 0 answered, 2 wrong usage or")
        print("configuration, 3 no answer, 4 deadline, 5 budget, 6 a model failed, 130 stopped.")
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
    try:
        code = command(verb, name).main(rest, prog_name=f"llamoot {verb}", standalone_mode=False)
    except typer.Exit as end:
        code = end.exit_code
    except _UsageError as error:
        text: str = getattr(error, "format_message", error.__str__)()
        message, _, options = text.rstrip(".").replace("\n", " ").partition(" (Possible options: ")
        hint = f"; did you mean {options.split(',')[0].rstrip(')')}?" if options else ""
        hint = hint or f"; `llamoot {verb} --help` lists what it takes"
        return _say(message[:1].lower() + message[1:] + hint, 2)
    if code == 130:  # what typer makes of Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def command(verb: str, name: str) -> Any:
    """The command of a verb; importing its file `name` is what this costs."""
    module = importlib.import_module(f"llamoot.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {"help_option_names": ["-h", "--help"]}
    app.command(verb, context_settings=settings)(getattr(module, name))
    return typer.main.get_command(app)


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
