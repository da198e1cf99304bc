"""One run: its events so far, where they are recorded, and who follows them."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable

from llamoot.council.events import AnyEvent, CouncilFailed, CouncilFinished, Event, Warned, stamp
from llamoot.council.folds import Transcript
from llamoot.council.store import Store
from llamoot.errors import LlamootError

Listener = Callable[[Event], None]


def new_id() -> str:
    """A name for a run that sorts by time: 10 characters of time, 6 by chance."""
    return f"{int(time.time() * 1000):010x}"[-11:] + secrets.token_hex(3)


class Run:
    """The record of a deliberation. `emit` is the only way anything gets into it."""

    def __init__(self, id: str, store: Store | None, listener: Listener | None = None) -> None:
        self.id, self.store = id, store
        self.events: list[Event] = []
        self.transcript = Transcript(run=id)
        self.task: asyncio.Task[None] | None = None
        self.late = ""  # why it could not be recorded from the beginning
        self._listener = listener
        self._news: list[asyncio.Future[None]] = []

    @property
    def over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], CouncilFinished | CouncilFailed)

    def load(self, past: list[AnyEvent]) -> None:
        """Begin with events that are already recorded."""
        for event in past:
            self.events.append(event)
            self.transcript.add(event)

    def emit(self, event: Event) -> None:
        """Number the event, record it, then tell everyone. A full disk ends recording only."""
        stamp(event, len(self.events))
        self.events.append(event)
        self.transcript.add(event)
        if self.store is not None:
            self._record(event)
        if self._listener is not None:
            self._listener(event)
        waiting, self._news = self._news, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _record(self, event: Event) -> None:
        store = self.store
        assert store is not None
        try:
            store.append(self.id, event)
            if isinstance(event, CouncilFinished):
                store.close_run(self.id, "finished", event.text)
            elif isinstance(event, CouncilFailed):
                store.close_run(self.id, "failed")
        except LlamootError as error:
            self.store = None
            self.emit(Warned(code="not_recorded", message=str(error)))

    async def follow(self, start: int = 0) -> AsyncIterator[Event]:
        """All events from number `start` on, those to come included, until the run is over."""
        at = start
        while True:
            while at < len(self.events):
                at += 1
                yield self.events[at - 1]
            if self.over:
                return
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._news.append(future)
            await future

    async def wait(self) -> Transcript:
        """The transcript, once the run is over. Cancelling the waiter leaves the run alone."""
        async for _ in self.follow(len(self.events)):
            pass
        if self.task is not None:
            await asyncio.wait([self.task])
        return self.transcript

    def cancel(self) -> None:
        """End the run: every open call is closed and the run fails with `cancelled`."""
        if self.task is not None:
            self.task.cancel()
