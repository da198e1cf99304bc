"""Reasoning and tool calls are recognised in what families write, in pieces of any size."""

import json

import pytest

from llamoot.errors import BadRequest
from llamoot.text.forced import forced_call
from llamoot.text.output import Delta, OutputParser
from llamoot.text.syntax import Syntax, detect

pytestmark = pytest.mark.pure

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "where": {"type": "object"},
                },
            },
        },
    },
    {"name": "clock", "parameters": {}},
]
ARGS = {"city": 'Zürich "old" {town} </x>\nline\\', "days": 3, "where": {"x": [1, 2]}}
JSON = json.dumps(ARGS, ensure_ascii=False)
CALL = f'{{"name": "weather", "arguments": {JSON}}}'
THINK = "<think>\nfirst {a}\n\nthen <b>\n</think>\n\n"
XML = (
    "<function=weather>\n<parameter=city>\n"
    + ARGS["city"]
    + "\n</parameter>\n<parameter=days>\n3\n"
    '</parameter>\n<parameter=where>\n{"x": [1, 2]}\n</parameter>\n</function>'
)
GLM = (
    "weather\n<arg_key>city</arg_key>\n<arg_value>" + ARGS["city"] + "</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    '<arg_key>where</arg_key>\n<arg_value>{"x": [1, 2]}</arg_value>\n'
)
GEMMA = (
    '<|tool_call>call:weather{city:<|"|>' + ARGS["city"] + '<|"|>,days:3,where:{x:[1,2]}}'
    "<tool_call|>"
)
R1 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"
V3 = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
HARMONY = (
    "<|channel|>analysis<|message|>first {a}\n\nthen <b><|end|><|start|>assistant"
    "<|channel|>commentary<|message|>Moment.<|end|>"
    "<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json<|message|>"
    + JSON
)
W, C = ("weather", ARGS), ("clock", {})
REASON = "first {a}\n\nthen <b>"

# template file, output, text, reasoning, calls
CASES = [
    ("Qwen-Qwen3-0.6B", f"{THINK}<tool_call>\n{CALL}\n</tool_call>", "", REASON, [W]),
    (
        "Qwen-Qwen3-0.6B",
        f'Now.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{{"name": "clock"}}</tool_call>',
        "Now.\n",
        "",
        [W, C],
    ),
    (
        "HuggingFaceTB-SmolLM3-3B",
        f'{THINK}Good.<tool_call>{{"arguments": {JSON}, "name": "weather"}}</tool_call>',
        "Good.",
        REASON,
        [W],
    ),
    ("Qwen3.5-4B", f"{THINK}Ok\n<tool_call>\n{XML}\n</tool_call>", "Ok\n", REASON, [W]),
    (
        "GLM-4.6",
        f"{THINK}<tool_call>{GLM}</tool_call><tool_call>clock</tool_call>",
        "",
        REASON,
        [W, C],
    ),
    ("meta-llama-Llama-3.1-8B-Instruct", CALL.replace("arguments", "parameters"), "", "", [W]),
    ("meta-llama-Llama-3.1-8B-Instruct", f"<|python_tag|>{CALL}; {CALL}", "", "", [W, W]),
    (
        "meta-llama-Llama-3.1-8B-Instruct",
        '<|python_tag|>weather.call(city="x", days=3)',
        "",
        "",
        [("weather", {"city": "x", "days": 3})],
    ),
    ("mistralai-Mistral-Nemo-Instruct-2407", f"[TOOL_CALLS][{CALL}, {CALL}]", "", "", [W, W]),
    ("mistralai-Mistral-Nemo-Instruct-2407", f"[TOOL_CALLS]weather[ARGS]{JSON}", "", "", [W]),
    ("ibm-granite-granite-3.3-2B-Instruct", f"<|tool_call|>[{CALL}]", "", "", [W]),
    (
        "ibm-granite-granite-3.3-2B-Instruct",
        f"{THINK}<response>Yes.</response>",
        "Yes.",
        REASON,
        [],
    ),
    (
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        f"{THINK}<｜tool▁calls▁begin｜>{R1.format('weather', JSON)}\n{R1.format('clock', '{}')}"
        "<｜tool▁calls▁end｜>",
        "",
        REASON,
        [W, C],
    ),
    (
        "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        f"<｜tool▁calls▁begin｜>{V3.format('weather', JSON)}<｜tool▁calls▁end｜>",
        "",
        "",
        [W],
    ),
    (
        "google-gemma-4-31B-it",
        f"<|channel>thought\n{REASON}\n<channel|>Ok.{GEMMA}",
        "Ok.",
        REASON,
        [W],
    ),
    ("openai-gpt-oss-120b", HARMONY, "Moment.", REASON, [W]),
    (
        "openai-gpt-oss-120b",
        "<|channel|>final<|message|>Plain answer.",
        "Plain answer.",
        "",
        [],
    ),
    ("google-gemma-2-2b-it", "a < b {c} <tool", "a < b {c} <tool", "", []),
    ("microsoft-Phi-3.5-mini-instruct", '{"answer": 1}', '{"answer": 1}', "", []),
]


# What a template contains, output, calls: families without a template in the reference folder.
MORE = [
    (
        "<minimax:tool_call>",
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">a "b"</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="clock">\n</invoke>\n'
        "</minimax:tool_call>",
        [("weather", {"city": 'a "b"', "days": 3}), C],
    ),
    ("<seed:tool_call>", f"<seed:tool_call>\n{XML}\n</seed:tool_call>", [W]),
    ("<TOOLCALL>", f"<TOOLCALL>[{CALL}, {CALL}]</TOOLCALL>", [W, W]),
    (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        f"<|tool_call_argument_begin|>{JSON}<|tool_call_end|><|tool_calls_section_end|>",
        [W],
    ),
    (
        "<|START_ACTION|>",
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "weather", "parameters": {JSON}}}]'
        "<|END_ACTION|>",
        [W],
    ),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("template", "output", "calls"), MORE)
def test_more_families_calls_are_recognised(template, output, calls, size):  # type: ignore[no-untyped-def]
    pieces = [output[i : i + size] for i in range(0, len(output), size)]
    assert play(detect(template), pieces) == ("", "", calls)


def collect(deltas: list[Delta]) -> tuple[str, str, list[tuple[str, object]]]:
    """Text, reasoning, and calls put together from their pieces."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in (piece for delta in deltas for piece in delta.tools):
        if piece.name:
            assert piece.index not in names, "a call is named once"
            names[piece.index] = piece.name
        assert piece.index in names, "the name comes first"
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    calls = [(names[i], json.loads(arguments[i])) for i in sorted(names)]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


def play(syntax: Syntax, pieces: list[str], tools=TOOLS, reasoning=False):  # type: ignore[no-untyped-def]
    parser = OutputParser(syntax, tools, reasoning=reasoning)
    return collect([*(parser.feed(piece) for piece in pieces), parser.finish()])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("name", "output", "text", "reasoning", "calls"), CASES)
def test_every_familys_output_is_taken_apart_in_pieces_of_any_size(  # type: ignore[no-untyped-def]
    shared, name, output, text, reasoning, calls, size
):
    syntax = detect((shared / "templates" / f"{name}.jinja").read_text())
    pieces = [output[i : i + size] for i in range(0, len(output), size)]
    assert play(syntax, pieces) == (text, reasoning, calls)


def test_a_forced_call_is_a_schema_and_is_read_as_a_call(shared):  # type: ignore[no-untyped-def]
    syntax = detect((shared / "templates" / "Qwen-Qwen3-0.6B.jinja").read_text())
    forced = forced_call(TOOLS, "required", syntax, reasoning=True)
    assert forced is not None and forced.suffix == "</think>\n\n<tool_call>\n"
    assert [form["properties"]["name"]["const"] for form in forced.schema["anyOf"]] == [
        "weather",
        "clock",
    ]
    text = json.dumps({"name": "weather", "arguments": ARGS})
    assert play(forced.syntax, [*text]) == ("", "", [W])
    named = forced_call(TOOLS, "clock", syntax)
    assert named is not None and named.schema["properties"]["name"] == {"const": "clock"}
    assert forced_call(TOOLS, "auto", syntax) is None
    shared_name = [
        {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/X"}},
                "$defs": {"X": {"type": kind}},
            },
        }
        for name, kind in (("a", "string"), ("b", "integer"))
    ]
    forced = forced_call(shared_name, "required", syntax)
    assert forced is not None
    refs = [f["properties"]["arguments"]["properties"]["x"]["$ref"] for f in forced.schema["anyOf"]]
    kinds = [forced.schema["$defs"][ref.removeprefix("#/$defs/")]["type"] for ref in refs]
    assert kinds == ["string", "integer"]
    for tools, choice in ((TOOLS, "other"), ([], "required")):
        with pytest.raises(BadRequest, match="offered"):
            forced_call(tools, choice, syntax)
