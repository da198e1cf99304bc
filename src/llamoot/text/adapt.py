"""What a template has no place for, written so that it has: in words, or in more messages."""

import json
from typing import Any

Chat = list[dict[str, Any]]
TOOL_PROMPT = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{}\n"
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


def complete_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function with every key that templates take for granted."""
    kept = {key: value for key, value in tool.items() if key != "strict"}
    empty = {"type": "object", "properties": {}}
    return {"name": "", "description": "", **kept, "parameters": kept.get("parameters") or empty}


def one_call_each(chat: Chat) -> Chat:
    """Turns with several calls as several turns, each with the answer to its call."""
    out: Chat = []
    answers = {m.get("tool_call_id"): m for m in chat if m["role"] == "tool"}
    moved: set[int] = set()
    for message in chat:
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            if id(message) not in moved:
                out.append(message)
            continue
        for n, call in enumerate(calls):
            first = {} if n == 0 else {"content": "", "reasoning_content": "", "thinking": ""}
            turn = message | {k: v for k, v in first.items() if k in message}
            out.append({**turn, "tool_calls": [call]})
            answer = answers.get(call["id"])
            if answer is not None:
                moved.add(id(answer))
                out.append(answer)
    return out


def fold_system(chat: Chat) -> Chat:
    """The system message put before the first user message, for templates that have no such."""
    system, rest = chat[0]["content"], chat[1:]
    for i, message in enumerate(rest):
        if message["role"] == "user" and isinstance(message["content"], str):
            folded = {**message, "content": f"{system}\n\n{message['content']}"}
            return [*rest[:i], folded, *rest[i + 1 :]]
    return [{"role": "user", "content": system}, *rest]


def calls_as_text(message: dict[str, Any]) -> dict[str, Any]:
    """The calls of a turn written into its content, for templates that would leave them out."""
    message = dict(message)
    for call in message.pop("tool_calls", ()):
        body = json.dumps(call["function"], ensure_ascii=False)
        before = f"{message['content']}\n" if message["content"] else ""
        message["content"] = f"{before}<tool_call>\n{body}\n</tool_call>"
    return message


def as_text(chat: Chat, tools: list[Any]) -> Chat:
    """Tools, calls and results written into the messages, for templates that know no tools."""
    prompt = TOOL_PROMPT.format("\n".join(json.dumps(t, ensure_ascii=False) for t in tools))
    out: Chat = []
    for message in chat:
        message = calls_as_text(message)
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if out and out[-1].get("answers"):
                out[-1]["content"] += f"\n{content}"
                continue
            message = {"role": "user", "content": content, "answers": True}
        out.append(message)
    if out and out[0]["role"] == "system":
        return [{**out[0], "content": f"{out[0]['content']}\n\n{prompt}"}, *out[1:]]
    return [{"role": "system", "content": prompt}, *out]
