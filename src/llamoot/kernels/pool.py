"""Threads that run tapes. They enter native code through ctypes, which releases the GIL.

The thread that asks for a step takes part in it; workers wait inside native code, spin for about
a millisecond after a step and then sleep on a lock. A step begins in one native call, so an
interrupt in Python comes before it or after it, never in the middle.
All models of a process share one pool for each thread count: their steps take turns.
"""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from llamoot import env
from llamoot.kernels import control as c
from llamoot.kernels.cores import usable
from llamoot.kernels.library import Entry, Kernel, Library, library
from llamoot.kernels.memory import address, aligned

Words = npt.NDArray[Any]

PATIENCE = 4000  # turns that a worker spins after a step before it sleeps: a millisecond or two
TRIES = 20  # times that sleeping workers are called before a step begins without them


class Pool:
    """`threads` threads, the caller included; made by `lease`."""

    def __init__(self, threads: int) -> None:
        """Starts threads - 1 workers."""
        self.threads, self.users = threads, 0
        self.library: Library = library()
        self._control = aligned((c.SLOTS + c.LINE * threads) // 8)
        self._control[c.YIELD // 8] = _yield_address()
        self._turn = threading.Lock()
        self._done = np.zeros(1, np.int64)
        self._nothing = np.zeros(1, np.int64)
        self._closed = False
        self._lead = self.library.kernel("loop.lead")
        self._enter = Entry(self._lead.address)
        self._wake = [threading.Lock() for _ in range(threads - 1)]
        for i, lock in enumerate(self._wake):
            lock.acquire()
            name = f"llamoot-worker-{i + 1}"
            threading.Thread(target=self._work, args=(i,), name=name, daemon=True).start()
        _POOLS.add(self)

    def run(self, tape: Words, counters: Words) -> None:
        """Run a tape: (ops, 3) words as `control` says; `counters` has a line for each op."""
        values = {
            "control": address(self._control),
            "slots": len(self._wake),
            "tape": address(tape),
            "n_ops": len(tape),
            "counters": address(counters),
            "patience": PATIENCE,
            "done": address(self._done),
        }
        with self._turn:
            self._done[0] = 0
            for attempt in range(TRIES):
                self._call_sleepers()
                strict = int(attempt < TRIES - 1)
                words = self._words(self._lead, values | {"strict": strict})
                self._enter(address(words), 0, 1)
                if self._done[0]:
                    return

    def call(self, name: str, rows: int = 1, **values: float) -> None:
        """Run one kernel by itself, on all threads; addresses must stay alive meanwhile."""
        kernel, counter, count = self.library.kernel(name), aligned(8), np.array([rows])
        words = self._words(kernel, values, counter, count)
        tape = np.array([[kernel.address, address(words), 1]])
        self.run(tape, counter)

    def close(self) -> None:
        """Stop the workers; safe to call twice."""
        self._closed = True
        for lock in self._wake:
            if lock.locked():
                lock.release()

    def forget_workers(self) -> None:
        """In a forked child: the threads were not copied, and the lock may be held by one."""
        self._turn = threading.Lock()
        for i in range(len(self._wake)):
            self._control[(c.SLOTS + c.LINE * i + c.STATE) // 8] = c.GONE

    def _words(
        self,
        kernel: Kernel,
        values: Mapping[str, float],
        counter: Words | None = None,
        rows: Words | None = None,
    ) -> Words:
        head = [address(counter), address(self._nothing if rows is None else rows), 1]
        return kernel.words(head, values)

    def _call_sleepers(self) -> None:
        for i, lock in enumerate(self._wake):
            asleep = self._control[(c.SLOTS + c.LINE * i + c.STATE) // 8] == c.ASLEEP
            if asleep and lock.locked():
                lock.release()

    def _work(self, i: int) -> None:
        """A worker's life: wait inside native code, sleep outside."""
        slot = c.SLOTS + c.LINE * i
        kernel = self.library.kernel("loop.serve")
        base = address(self._control)
        values = {"control": base, "slot": base + slot, "patience": PATIENCE}
        words, enter = self._words(kernel, values), Entry(kernel.address)
        try:
            while not self._closed:
                enter(address(words), i + 1, self.threads)
                self._wake[i].acquire()
        finally:
            self._control[(slot + c.STATE) // 8] = c.GONE


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()
_LEASED: dict[tuple[int, str], Pool] = {}
_LEASING = threading.Lock()


def lease(threads: int = 0) -> Pool:
    """The pool of this process with so many threads; 0 is LLAMOOT_THREADS or one per core."""
    threads = threads or env.get("LLAMOOT_THREADS") or usable()
    with _LEASING:
        key = (threads, library().target.key)
        pool = _LEASED.get(key)
        if pool is None:
            pool = _LEASED[key] = Pool(threads)
        pool.users += 1
        return pool


def give_back(pool: Pool) -> None:
    """Return a leased pool; its threads stop with the last user."""
    with _LEASING:
        pool.users -= 1
        if pool.users == 0:
            _LEASED.pop((pool.threads, pool.library.target.key))
            pool.close()


def _after_fork() -> None:
    for pool in _POOLS:
        pool.forget_workers()


def _yield_address() -> int:
    """The system's call that lets another thread have the processor; 0 if unknown."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
