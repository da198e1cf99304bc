"""How families of models mark reasoning and tool calls in what they write: one row per family.

The row is found by what the chat template contains. Two words of the table: `think` are the
(open, close) pairs around reasoning; `style` names the parser in `output.py` for tool calls.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

THINK = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)


@dataclass(frozen=True)
class Syntax:
    """Markers of one family. `calls` maps what opens a region of calls to its style."""

    name: str = "plain"
    calls: dict[str, str] = field(default_factory=dict)
    think: tuple[tuple[str, str], ...] = ()
    inner: tuple[str, ...] = ()  # markers inside regions
    drop: tuple[str, ...] = ()  # markers that carry nothing
    bare_json: bool = False  # an answer that is one JSON object may be a call

    @cached_property
    def markers(self) -> frozenset[str]:
        """Control tokens that must reach the parser; all others are dropped."""
        pairs = {marker for pair in self.think for marker in pair}
        closing = {"</" + marker[1:] for marker, style in self.calls.items() if style == "tag"}
        return frozenset({*self.calls, *closing, *pairs, *self.inner, *self.drop})


PLAIN = Syntax()
HERMES = Syntax(
    "hermes",
    {"<tool_call>": "tag"},
    inner=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
# What a template contains -> its family; the first that fits.
ROWS: tuple[tuple[str, Syntax], ...] = (
    (
        "<|start|>assistant",
        Syntax(
            "harmony",
            {"<|start|>": "harmony"},
            inner=("<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"),
        ),
    ),
    (
        "<|tool_call>",
        Syntax("gemma", {"<|tool_call>": "gemma"}, inner=("<tool_call|>", '<|"|>')),
    ),
    (
        "<｜tool▁calls▁begin｜>",
        Syntax(
            "deepseek",
            {"<｜tool▁calls▁begin｜>": "sections", "<｜tool▁call▁begin｜>": "sections"},
            inner=("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        ),
    ),
    (
        "<|tool_calls_section_begin|>",
        Syntax(
            "kimi",
            {"<|tool_calls_section_begin|>": "sections", "<|tool_call_begin|>": "sections"},
            inner=(
                "<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                "<|tool_calls_section_end|>",
            ),
        ),
    ),
    (
        "[TOOL_CALLS]",
        Syntax("mistral", {"[TOOL_CALLS]": "list"}, inner=("[ARGS]", "[CALL_ID]")),
    ),
    ("<|tool_call|>", Syntax("granite", {"<|tool_call|>": "list"}, drop=("<|/tool_call|>",))),
    ("<|START_ACTION|>", Syntax("command", {"<|START_ACTION|>": "list"}, drop=("<|END_ACTION|>",))),
    ("<|python_tag|>", Syntax("llama", {"<|python_tag|>": "python"}, bare_json=True)),
    ("<minimax:tool_call>", Syntax("minimax", {"<minimax:tool_call>": "tag"})),
    ("<seed:tool_call>", Syntax("seed", {"<seed:tool_call>": "tag"})),
    ("<TOOLCALL>", Syntax("nemotron", {"<TOOLCALL>": "tag"})),
    ("<function=", replace(HERMES, name="qwen-xml")),
    ("<arg_key>", replace(HERMES, name="glm")),
)


def detect(template: str) -> Syntax:
    """The family of a chat template, by the markers it contains; HERMES where it has none."""
    syntax = next((row for needle, row in ROWS if needle in template), HERMES)
    think = tuple(pair for pair in THINK if pair[0] in template or pair[1] in template)
    drop = syntax.drop
    if "<response>" in template:
        drop = (*drop, "<response>", "</response>")
    if not template or syntax.name == "harmony":
        think = THINK[:1] if not template else ()
    return replace(syntax, think=think, drop=drop)


def opens_reasoning(prompt: str, syntax: Syntax) -> bool:
    """Whether a prompt ends inside a reasoning region, so that the answer starts in one."""
    return any(prompt.rstrip().endswith(open_) for open_, _ in syntax.think)
