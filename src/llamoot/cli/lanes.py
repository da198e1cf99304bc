"""Live lanes on a terminal: what every expert is saying, side by side, as it is said."""

import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llamoot.cli.render import brief, progress
from llamoot.council.events import (
    Answer,
    Convergence,
    CouncilStarted,
    Event,
    ExpertFailed,
    RoundStarted,
    SynthesisToken,
    Token,
    Warned,
)

_MARKS = {"ok": "✓", "truncated": "✂", "cancelled": "–", "timeout": "⏱"}


class Lanes:
    """Redraws at most ten times a second; finished rounds stay above as plain lines."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.names: dict[str, str] = {}
        self.text: dict[str, str] = {}
        self.title = ""
        self.began = self.drawn = 0.0

    def __enter__(self) -> "Lanes":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, CouncilStarted):
            self.names = {m.label: m.id for m in event.members}
            self.console.print(progress(event), style="dim")
        elif isinstance(event, RoundStarted):
            self.title, self.began = progress(event), time.monotonic()
            # The seats of the last stage are a ladder: only who is asked gets a lane.
            seats = () if event.stage == "synthesis" else event.seats
            self.text = dict.fromkeys(seats, "")
            self.console.print(self.title, style="bold")
        elif isinstance(event, Token | SynthesisToken):
            said = self.text.get(event.seat, "") + (event.text or event.reasoning)
            self.text[event.seat] = said[-400:]
        elif isinstance(event, Answer | ExpertFailed):
            self.text.pop(event.seat, None)
            mark = _MARKS.get(event.status, "✗")
            line = progress(event).strip()
            self.console.print(Text(f" {mark} {line}", overflow="ellipsis", no_wrap=True))
        elif isinstance(event, Convergence | Warned):
            self.console.print(progress(event), style="dim")
        now = time.monotonic()
        if now - self.drawn > 0.1 or not isinstance(event, Token | SynthesisToken):
            self.drawn = now
            self.live.update(self._lanes(), refresh=True)

    def _lanes(self) -> Group:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        width = max(self.console.width - 24, 20)
        for seat, text in self.text.items():
            name = f" … {seat} {self.names.get(seat, '')}"[:22]
            table.add_row(Text(name, style="cyan"), Text(brief(text, width)))
        seconds = f"{time.monotonic() - self.began:.0f} s" if self.began and self.text else ""
        return Group(table, Text(seconds, style="dim")) if self.text else Group(Text(""))
