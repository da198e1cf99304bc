"""Runs and their events in one SQLite file. Appending is all that ever happens to an event.

Tokens are written together with the next event that matters, so that a fast stream costs one
transaction per answer; everything else is on its way to the disk before anyone is told of it.
A killed process loses nothing but the last tokens of calls that have to be asked again anyway.
"""

import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from llamoot.council.events import AnyEvent, Event, SynthesisToken, Token, decode, encode
from llamoot.council.folds import Transcript
from llamoot.errors import BadRequest, LlamootError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, created REAL NOT NULL, council TEXT NOT NULL, question TEXT NOT NULL,
  state TEXT NOT NULL, answer TEXT NOT NULL DEFAULT '', key TEXT UNIQUE, owner INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  run TEXT NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (run, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_created ON runs (created);
"""


class Row(Struct, frozen=True):
    """A run in one line. `state`: running, finished, failed; `owner`: the process that runs it."""

    id: str
    created: float
    council: str
    question: str
    state: str
    answer: str
    key: str | None
    owner: int

    @property
    def alive(self) -> bool:
        """Whether the process that runs it still exists."""
        if self.state != "running":
            return False
        try:
            os.kill(self.owner, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class Store:
    """Open `path` (':memory:' keeps nothing). Raises LlamootError where it cannot be written."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            if self.path != ":memory:":
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LlamootError(
                f"cannot keep runs in {self.path}: {error}; set LLAMOOT_DATA to a folder "
                "that can be written"
            ) from None
        self._waiting: list[tuple[str, int, str, bytes]] = []

    def _do(self, sql: str, values: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise LlamootError(f"cannot use the runs in {self.path}: {error}") from None

    def create(self, run: str, council: str, question: str, key: str | None = None) -> str:
        """Enter a new run; the id of the run that already has this key, or `run` itself."""
        row = (run, time.time(), council, question, "running", key or None, os.getpid())
        self._do(
            "INSERT INTO runs (id, created, council, question, state, key, owner) "
            "VALUES (?,?,?,?,?,?,?) ON CONFLICT (key) DO NOTHING",
            row,
        )
        if key:
            return str(self._do("SELECT id FROM runs WHERE key=?", (key,)).fetchone()[0])
        return run

    def append(self, run: str, event: Event) -> None:
        name = str(type(event).__struct_config__.tag)
        self._waiting.append((run, event.seq, name, encode(event)))
        if not isinstance(event, Token | SynthesisToken) or len(self._waiting) > 2000:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        rows, self._waiting = self._waiting, []
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO events VALUES (?,?,?,?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise LlamootError(f"cannot record the run in {self.path}: {error}") from None

    def close_run(self, run: str, state: str, answer: str = "") -> None:
        self._do("UPDATE runs SET state=?, answer=? WHERE id=?", (state, answer, run))

    def claim(self, run: str) -> None:
        """This process goes on with the run."""
        self._do("UPDATE runs SET state='running', owner=? WHERE id=?", (os.getpid(), run))

    def events(self, run: str, start: int = 0) -> list[AnyEvent]:
        """The events of `run` from number `start` on, in order."""
        found: Iterable[tuple[bytes]] = self._do(
            "SELECT body FROM events WHERE run=? AND seq>=? ORDER BY seq", (run, start)
        )
        try:
            return [decode(body) for (body,) in found]
        except msgspec.DecodeError as error:
            why = f"run {run} was recorded by another version of llamoot: {error}"
            raise LlamootError(why) from None

    def runs(self, limit: int = 20, words: str = "") -> list[Row]:
        """The latest runs, newest first; `words`: only those with them in question or answer."""
        like = "%" + words.replace("%", "").replace("_", "\\_") + "%"
        found = self._do(
            "SELECT id, created, council, question, state, answer, key, owner FROM runs WHERE "
            "question LIKE ? ESCAPE '\\' OR answer LIKE ? ESCAPE '\\' "
            "ORDER BY created DESC, id DESC LIMIT ?",
            (like, like, limit),
        )
        return [Row(*row) for row in found]

    def transcripts(self, limit: int = 30) -> list[Transcript]:
        """The latest runs as transcripts, newest first."""
        return [Transcript.of(list(self.events(row.id))) for row in self.runs(limit)]

    def find(self, name: str) -> Row:
        """A run by its id, an unambiguous beginning of it, its idempotency key, or 'last'."""
        if name == "last":
            rows = self.runs(1)
        else:
            found = self._do(
                "SELECT id, created, council, question, state, answer, key, owner FROM runs "
                "WHERE substr(id, 1, ?)=? OR key=? LIMIT 2",
                (len(name), name, name),
            )
            rows = [Row(*row) for row in found]
        if len(rows) != 1:
            how = "several runs begin" if rows else "no run begins"
            raise BadRequest(f"{how} with '{name}'; `llamoot runs` lists them", "run")
        return rows[0]

    def close(self) -> None:
        self.flush()
        self._db.close()
