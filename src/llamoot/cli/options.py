"""What a verb takes, read from its function's annotations: parsing, help, one-sentence errors.

    def ask(question: Annotated[str, Argument(help="…")], json: Annotated[bool, Option("--json")])

Option syntax is that of the standard library's gnu_getopt: options anywhere, `--name value`,
`--name=value`, unique beginnings of long names, `--` before texts that begin with a dash. A
parameter is a str, int, float, bool or Path, `| None`, or a list of one of these: an option that
may be given again, or all remaining arguments. typer reads the same annotations, but it loads
pydantic at every start, which costs more than everything else that `ask` imports.
"""

import difflib
import getopt
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from llamoot.errors import BadRequest

_KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter given by its place. `metavar` is its name in the help."""

    help: str = ""
    metavar: str = ""


class Option:
    """A parameter given by name; without `names`, by that of the function's parameter."""

    def __init__(
        self, *names: str, help: str = "", min: float | None = None, max: float | None = None
    ) -> None:
        """`min` and `max` are the least and the greatest number that are taken."""
        self.names, self.help, self.min, self.max = names, help, min, max


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a verb."""

    name: str
    kind: type
    many: bool
    required: bool
    default: Any
    about: Argument | Option

    @property
    def names(self) -> tuple[str, ...]:
        """What gives it: `--name` and the like; its place's name for an argument."""
        if isinstance(self.about, Argument):
            return (self.about.metavar or self.name.upper(),)
        return self.about.names or (f"--{self.name.replace('_', '-')}",)

    @property
    def negatives(self) -> tuple[str, ...]:
        """What says no to a flag that is not off by itself."""
        if self.kind is not bool or self.default is False:
            return ()
        return tuple(f"--no-{name[2:]}" for name in self.names if name.startswith("--"))


def parameters(verb: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a verb's function."""
    found = []
    for name, given in inspect.signature(verb).parameters.items():
        kind, about = get_args(given.annotation)[:2]
        if isinstance(kind, types.UnionType):
            kind = next(one for one in get_args(kind) if one is not types.NoneType)
        many = get_origin(kind) is list
        required = given.default is inspect.Parameter.empty
        default = None if required else given.default
        kind = get_args(kind)[0] if many else kind
        found.append(Parameter(name, kind, many, required, default, about))
    return found


def parse(verb: Callable[..., Any], args: Sequence[str]) -> dict[str, Any]:
    """The arguments for a verb's function. Raises BadRequest."""
    known = parameters(verb)
    named = {name: p for p in known if isinstance(p.about, Option) for name in p.names}
    negated = {name: p for p in known if isinstance(p.about, Option) for name in p.negatives}
    short = "".join(n[1] + ":" * (p.kind is not bool) for n, p in named.items() if n[1] != "-")
    long = [n[2:] + "=" * (p.kind is not bool) for n, p in named.items() if n[1] == "-"]
    try:
        given, rest = getopt.gnu_getopt(list(args), short, long + [name[2:] for name in negated])
    except getopt.GetoptError as error:
        raise BadRequest(_unknown(error, [*named, *negated]), error.opt) from None
    values: dict[str, Any] = {p.name: p.default for p in known}
    for name, text in given:
        if name in negated:
            values[negated[name].name] = False
            continue
        p = named[name]
        value = True if p.kind is bool else _read(p, name, text)
        values[p.name] = [*(values[p.name] or []), value] if p.many else value
    seen = {named[name].name for name, _ in given if name in named}
    _place([p for p in known if isinstance(p.about, Argument)], rest, values)
    for p in known:
        if p.required and isinstance(p.about, Option) and p.name not in seen:
            raise BadRequest(f"missing option '{p.names[0]}'", p.name)
    return values


def _place(places: list[Parameter], rest: list[str], values: dict[str, Any]) -> None:
    """Give the remaining words to the arguments, in order."""
    for p in places:
        taken, rest = (rest, []) if p.many else (rest[:1], rest[1:])
        if taken:
            read = [_read(p, p.names[0], text) for text in taken]
            values[p.name] = read if p.many else read[0]
        elif p.required:
            raise BadRequest(f"missing argument '{p.names[0]}'", p.name)
    if rest:
        hint = "; put a text of several words in quotes" if places else ""
        raise BadRequest(f"unexpected argument '{rest[0]}'{hint}", None)


def _read(p: Parameter, name: str, text: str) -> Any:
    """One value of a parameter, from its text."""
    try:
        value = p.kind(text)
    except ValueError:
        what = _KINDS.get(p.kind, "what it takes")
        raise BadRequest(f"invalid value for '{name}': '{text}' is not {what}", p.name) from None
    if isinstance(p.about, Option) and p.kind in (int, float):
        least, most = p.about.min, p.about.max
        if (least is not None and not value >= least) or (most is not None and not value <= most):
            limits = [f"at least {least:g}"] if least is not None else []
            limits += [f"at most {most:g}"] if most is not None else []
            words = " and ".join(limits)
            raise BadRequest(f"invalid value for '{name}': {text}; it is {words}", p.name)
    return value


def _unknown(error: getopt.GetoptError, names: list[str]) -> str:
    """What is wrong with an option, and which one may be meant."""
    if "not recognized" not in error.msg:
        return error.msg.replace("requires argument", "needs a value")
    if len(error.opt) == 1:
        return f"there is no option -{error.opt}; put -- before a text that begins with a dash"
    near = difflib.get_close_matches(f"--{error.opt}", names, 1)
    return f"there is no option --{error.opt}" + (f"; did you mean {near[0]}?" if near else "")


def usage(verb: Callable[..., Any], title: str) -> str:
    """The help of a verb; `title` is what is typed to reach it."""
    known = parameters(verb)
    places = [p for p in known if isinstance(p.about, Argument)]
    rows = [(p.names[0], _explained(p)) for p in places]
    options = [p for p in known if isinstance(p.about, Option)]
    rows += [(_shown(p), _explained(p)) for p in options] + [("-h, --help", "show this")]
    width = max(len(left) for left, _ in rows)
    words = [p.names[0] + "..." * p.many if p.required else f"[{p.names[0]}{'...' * p.many}]"
             for p in places]  # fmt: skip
    head = " ".join(["usage:", title, "[OPTIONS]", *words])
    lines = [f"  {left:{width}}  {right}".rstrip() for left, right in rows]
    return f"{head}\n\n{inspect.cleandoc(verb.__doc__ or '')}\n\n" + "\n".join(lines)


def _shown(p: Parameter) -> str:
    names = sorted([*p.names, *p.negatives], key=lambda name: name[1] == "-")
    value = {int: " N", float: " X", bool: "", Path: " PATH"}.get(p.kind, " TEXT")
    return ", ".join(names) + value


def _explained(p: Parameter) -> str:
    default = p.default if p.kind is not bool and not p.many else None
    notes = [] if default in (None, "", 0) else [f"default: {default}"]
    notes += ["required"] if p.required and isinstance(p.about, Option) else []
    notes += ["may be given again"] if p.many and isinstance(p.about, Option) else []
    return (p.about.help + (f" [{'; '.join(notes)}]" if notes else "")).lstrip()
