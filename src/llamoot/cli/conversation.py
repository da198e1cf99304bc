"""A conversation at the terminal: its turns, its /commands, and what it writes to a file."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llamoot.agents.types import Message, Sampling, Usage
from llamoot.errors import BadRequest

HELP = """\
/clear           begin again, with the same system message
/system TEXT     the system message; without TEXT none
/retry           answer the last question again
/undo            take the last question and its answer back
/set NAME VALUE  temperature, top_k, top_p, min_p, repeat_penalty, max_tokens, seed, think
/show            the settings, and what the last answer cost
/save FILE       write the conversation as JSON
/load FILE       go on with a conversation that was saved
/exit            leave (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on; \"\"\" begins and ends many lines."""


class Leave(Exception):
    """The user wants to go."""


@dataclass
class Conversation:
    """Turns so far, and how the next answer is made."""

    turns: list[Message] = field(default_factory=list)
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    think: bool | None = None
    usage: Usage = field(default_factory=Usage)

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model is shown."""
        first = (Message("system", self.system),) if self.system else ()
        return (*first, *self.turns)

    def ask(self, text: str) -> None:
        """The user's next turn."""
        self.turns.append(Message("user", text))

    def take_back(self) -> str:
        """Remove the last question and what came after it; '' if there is none."""
        while self.turns:
            turn = self.turns.pop()
            if turn.role == "user":
                return turn.content
        return ""

    def command(self, line: str) -> tuple[str, str]:
        """Obey a line that begins with /; gives what to say, and what to ask (or '')."""
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        match name:
            case "help" | "?":
                return HELP, ""
            case "exit" | "quit" | "bye":
                raise Leave
            case "clear":
                self.turns.clear()
                return "a new conversation", ""
            case "system":
                self.system = rest
                return "system message set" if rest else "no system message", ""
            case "retry":
                question = self.take_back()
                return ("" if question else "nothing was asked yet"), question
            case "undo":
                question = self.take_back()
                return (f"taken back: {question}" if question else "nothing was asked yet"), ""
            case "set":
                return self.change(*rest.partition(" ")[::2]), ""
            case "show":
                return self.show(), ""
            case "save" | "load":
                return self._file(name, Path(rest).expanduser()), ""
        raise BadRequest(f"there is no command /{name}; /help lists them")

    def change(self, name: str, value: str) -> str:
        """Change one setting; BadRequest names what there is."""
        if name == "think":
            self.think = {"on": True, "yes": True, "off": False, "no": False}.get(value)
            return f"think: {'as the model likes' if self.think is None else value}"
        kinds: dict[str, Callable[[str], float]] = {
            **dict.fromkeys(("temperature", "top_p", "min_p", "repeat_penalty"), float),
            **dict.fromkeys(("top_k", "max_tokens", "seed"), int),
        }
        if name not in kinds:
            raise BadRequest(f"'{name}' cannot be set; {', '.join(kinds)} and think can")
        try:
            setting: Any = kinds[name](value) if value else None
        except ValueError:
            raise BadRequest(f"{name} takes a number, not '{value}'") from None
        self.sampling = msgspec.structs.replace(self.sampling, **{name: setting})
        return f"{name}: {'as the model has it' if setting is None else setting}"

    def show(self) -> str:
        """Settings that were made, and the last answer's numbers."""
        made = {k: v for k, v in msgspec.to_builtins(self.sampling).items() if v is not None}
        made |= {} if self.think is None else {"think": self.think}
        u = self.usage
        return (
            f"{len(self.turns)} turns · {json.dumps(made) if made else 'nothing set'} · "
            f"last: prompt {u.prompt_tokens} tokens, {u.cached_tokens} cached; "
            f"answer {u.completion_tokens} in {u.prefill_s + u.decode_s:.1f} s"
        )

    def _file(self, what: str, path: Path) -> str:
        if what == "save":
            path.write_text(json.dumps(msgspec.to_builtins(self.messages), indent=1) + "\n")
            return f"saved to {path}"
        try:
            loaded = msgspec.json.decode(path.read_bytes(), type=list[Message])
        except msgspec.MsgspecError as error:
            raise BadRequest(f"{path} is no saved conversation: {error}") from None
        self.system = "".join(m.content for m in loaded[:1] if m.role == "system")
        self.turns = [m for m in loaded if m.role != "system"]
        return f"{len(self.turns)} turns loaded"
