"""`llamoot chat [MODEL]`: talk to a model or a council. Answers to stdout, the rest to stderr."""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from llamoot import env
from llamoot.agents.files import find_model
from llamoot.agents.local import LocalAgent
from llamoot.agents.types import Agent, ChatRequest, Message, Sampling, Usage
from llamoot.cli.conversation import Conversation, Leave
from llamoot.cli.options import Argument, Option
from llamoot.engine.budget import Settings
from llamoot.errors import LlamootError

try:
    import readline
except ImportError:  # no line editing on this system
    readline = None  # type: ignore[assignment]

HISTORY_LINES = 2000


def chat(
    model: Annotated[str, Argument(help="GGUF file, model name, or council/NAME")] = "",
    system: Annotated[str, Option("--system", "-s", help="system message")] = "",
    n: Annotated[int | None, Option("-n", help="tokens of an answer at most")] = None,
    temp: Annotated[float | None, Option(help="temperature; 0: the likeliest")] = None,
    top_p: Annotated[float | None, Option(help="of the likeliest that reach p")] = None,
    seed: Annotated[int | None, Option(help="the same seed, the same answers")] = None,
    think: Annotated[bool | None, Option(help="let the model reason, or not")] = None,
    plain: Annotated[bool, Option(help="show text as it is, no markdown")] = False,
    config: Annotated[Path | None, Option("--config", "-c", help="of councils")] = None,
    ctx: Annotated[int, Option(help="context in tokens; 0: what fits")] = 0,
    cache_type: Annotated[str, Option(help="f32, f16 or q8_0")] = "f16",
    threads: Annotated[int, Option(help="0: one per core")] = 0,
) -> None:
    """Talk to a model or a council. /help lists the commands, Ctrl-C stops an answer."""
    settings = Settings.of(cache_type, context=ctx, max_seqs=1, threads=threads)
    sampling = Sampling(temperature=temp, top_p=top_p, seed=seed, max_tokens=n)
    talk = Conversation(system=system, sampling=sampling, think=think)
    with asyncio.Runner() as runner:
        agent = runner.run(_open(model, settings, config))
        history = _History()
        try:
            _converse(runner, agent, talk, plain)
        finally:
            history.keep()
            runner.run(agent.close())


async def _open(model: str, settings: Settings, config: Path | None) -> Agent:
    """The agent to talk to. A council's file is imported only where one is meant."""
    kind, _, name = model.partition("/")
    if kind == "council" and not Path(model).exists():
        opened = await importlib.import_module("llamoot.api").Council.open(config, council=name)
        agent: Agent = importlib.import_module("llamoot.council.agent").CouncilAgent(opened)
        return agent
    path = find_model(model)
    local = LocalAgent("model", path, settings=settings)
    opened = await local.load()
    print(
        f"{opened.name} · context {opened.context_length} tokens · "
        f"{opened.n_bytes / 1e9:.2f} GB · /help",
        file=sys.stderr,
    )
    return local


def _converse(runner: asyncio.Runner, agent: Agent, talk: Conversation, plain: bool) -> None:
    while True:
        try:
            line = _read()
            said, question = talk.command(line) if line.startswith("/") else ("", line)
            if said:
                print(said, file=sys.stderr)
            if question.strip():
                talk.ask(question)
                runner.run(_answer(agent, talk, plain))
        except (EOFError, Leave):
            return
        except KeyboardInterrupt:
            print("(stopped; /exit or Ctrl-D leaves)", file=sys.stderr)
        except (LlamootError, OSError) as error:
            print(f"llamoot: {error}", file=sys.stderr)
            if talk.turns and talk.turns[-1].role == "user":
                talk.turns.pop()


def _read() -> str:
    """The next thing the user says: one line, or several."""
    is_terminal = sys.stdin.isatty()
    line = input("> " if is_terminal else "")
    if line.strip() == '"""':
        lines = []
        while (line := input("… " if is_terminal else "")).strip() != '"""':
            lines.append(line)
        return "\n".join(lines)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("… " if is_terminal else "")
    return line


async def _answer(agent: Agent, talk: Conversation, plain: bool) -> None:
    """Show one answer as it comes; what came before Ctrl-C stays part of the conversation."""
    args = {} if talk.think is None else {"enable_thinking": talk.think}
    request = ChatRequest(messages=talk.messages, sampling=talk.sampling, template_args=args)
    stream: Any = agent.chat(request)
    text, reasoning = "", ""
    page = _Page(plain)
    try:
        async for token in stream:
            text, reasoning = text + token.text, reasoning + token.reasoning
            page.show(token.text, reasoning if not text else "")
            talk.usage = token.usage or talk.usage
    finally:
        page.end()
        await stream.aclose()
        if text:
            talk.turns.append(Message("assistant", text, reasoning))
    talk.usage = talk.usage or Usage()


class _Page:
    """An answer on the terminal: finished blocks stay, the last one is drawn again as it grows."""

    def __init__(self, plain: bool) -> None:
        self._console = Console(soft_wrap=True)
        self._rich = self._console.is_terminal and not plain
        self._tail = ""
        self._live = Live(console=Console(), refresh_per_second=10) if self._rich else None
        if self._live:
            self._live.start()

    def show(self, text: str, reasoning: str) -> None:
        """More text; `reasoning` is all of it so far, while there is no text."""
        if self._live is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        self._tail += text
        done, fence, rest = self._tail.rpartition("\n\n")
        if fence and done.count("```") % 2 == 0:
            self._live.console.print(Markdown(done))
            self._live.console.print()
            self._tail = rest
        thought = Text(reasoning[-400:], style="dim italic") if reasoning else Text()
        self._live.update(
            Group(thought, Markdown(self._tail)) if reasoning else Markdown(self._tail)
        )

    def end(self) -> None:
        """The answer is complete, or was stopped."""
        if self._live is None:
            sys.stdout.write("\n")
            sys.stdout.flush()
            return
        self._live.stop()


class _History:
    """What was typed before, found again with the arrow keys."""

    def __init__(self) -> None:
        self._path = env.data_folder() / "chat_history"
        if readline is not None and sys.stdin.isatty() and self._path.is_file():
            readline.read_history_file(self._path)

    def keep(self) -> None:
        """Write it down for the next time."""
        if readline is None or not sys.stdin.isatty():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        readline.set_history_length(HISTORY_LINES)
        readline.write_history_file(self._path)
