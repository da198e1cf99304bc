"""Jinja for strangers' templates: no access to Python, a deadline, and a limit on sizes.

The sandbox of jinja2 keeps a template away from the interpreter but lets it run for ever and fill
the memory. Here every turn of a loop and every call of a macro looks at the clock (the syntax
tree is rewritten so), and every operation that can make a text longer looks at its size first.
"""

import json
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 5.0
MAX_CHARACTERS = 16_000_000
MAX_SOURCE = 1_000_000
MAX_WIDTH = 10_000
deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class Refused(TemplateError):
    """The template itself refuses these messages (`raise_exception`)."""


def check_clock() -> bool:
    """True, or SecurityError once the deadline of this rendering has passed."""
    if time.monotonic() > deadline.get():
        raise SecurityError(f"it runs for more than {SECONDS:g} s")
    return True


def check_size(size: int) -> None:
    """SecurityError where a text or list of `size` items would be too long."""
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")


def bounded_join(parts: Iterable[Any]) -> str:
    """The parts as one text, if that is not too long."""
    texts = [str(part) for part in parts]
    check_size(sum(map(len, texts)))
    return "".join(texts)


class Clock(Extension):
    """Gives rewritten templates their checks; the tag `generation` is transparent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tick(self) -> bool:
        return check_clock()

    def join(self, *parts: Any) -> str:
        return bounded_join(parts)


class Rewrite(NodeTransformer):
    """Puts a look at the clock into every loop and macro; `~` becomes a bounded join."""

    def _call(self, name: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
        method = nodes.ExtensionAttribute(Clock.identifier, name)
        return nodes.Call(method, arguments, [], None, None, lineno=line)

    def _tick(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("tick", [], node.lineno), lineno=node.lineno))
        if getattr(node, "test", None) is not None:
            look = self._call("tick", [], node.lineno)
            node.test = nodes.And(look, node.test, lineno=node.lineno)
        return node

    visit_For = visit_Macro = visit_CallBlock = _tick

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("join", node.nodes, node.lineno)


def _check_arguments(owner: Any, name: str, arguments: Iterable[Any]) -> None:
    """Refuse a call that would make a huge text out of small arguments."""
    arguments = list(arguments)
    if any(isinstance(a, int) and a > MAX_WIDTH for a in arguments):
        raise SecurityError(f"{name} with a number above {MAX_WIDTH}")
    if not isinstance(owner, str):
        return
    if name == "replace" and len(arguments) > 1:
        old, new = str(arguments[0]), str(arguments[1])
        check_size(len(owner) + owner.count(old) * len(new))
    elif name == "join" and arguments and hasattr(arguments[0], "__len__"):
        check_size(len(owner) * len(arguments[0]))
    elif name in ("format", "format_map"):
        _check_format(owner)


def _check_format(text: str) -> None:
    digits = 0
    for char in text:
        digits = digits + 1 if char.isdigit() else 0
        if digits > 4:
            raise SecurityError(f"a format with a width above {MAX_WIDTH}")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_clock()
        texts = [a for a in args if isinstance(a, str)]
        owner, rest = (texts[0], texts[1:]) if texts else (None, [])
        numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, int)]
        _check_arguments(owner, name, [*rest, *numbers])
        if name == "join":
            separator = max((len(str(a)) for a in (*args[1:], *kwargs.values())), default=0)
            check_size(separator * max((len(a) for a in args if hasattr(a, "__len__")), default=0))
        result = function(*args, **kwargs)
        if isinstance(result, str | list):
            check_size(len(result))
        return result

    return call


class Environment(ImmutableSandboxedEnvironment):
    """Jinja as `transformers` sets it up, with limits."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])
    concat = staticmethod(bounded_join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Clock, loopcontrols],
            optimized=False,
            cache_size=0,
        )
        self.filters["tojson"] = tojson
        self.filters = {name: _guarded(name, f) for name, f in self.filters.items()}
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Rewrite().visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_clock()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > 4096:
                raise SecurityError("it makes a number of more than 4096 bits")
        elif operator == "*":
            sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(times, int):
                check_size(len(sized) * max(times, 0))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            check_size(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        check_clock()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "a call")
        if isinstance(owner, str):
            _check_arguments(owner, name, [*args, *kwargs.values()])
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str):
            check_size(len(result))
        return result


def _refuse(message: str) -> None:
    raise Refused(str(message))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: no HTML escapes, characters as they are."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
