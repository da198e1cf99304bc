"""The tape and its threads: order, barriers, sleep, interruption, death and forks."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from llamoot.kernels import control as c
from llamoot.kernels import cores
from llamoot.kernels.compiled import Compiled
from llamoot.kernels.pool import Pool, give_back, lease
from llamoot.kernels.recorder import Recorder
from llamoot.kernels.step import Step
from llamoot.kernels.table import Buf
from llamoot.kernels.tape import Tape

pytestmark = pytest.mark.kernel


def small_step(rows: int = 8) -> Step:
    step = Step(rows, 2, 4)
    step.add([0] * rows, 0, [0], "all")
    return step


def chain(executor: Compiled, length: int, width: int = 256) -> Buf:
    """x = x + 1, `length` times over, through two buffers: every operation needs the one before."""
    a, b = executor.buffer(width), executor.buffer(width)
    ones = np.ones(width, np.float32)

    def forward(k: Recorder) -> None:
        for i in range(length):
            source, target = (a, b) if i % 2 == 0 else (b, a)
            k.add_vector(target, source, ones)

    executor.record(forward)
    return a if length % 2 == 0 else b


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_operation_sees_the_one_before(threads: int) -> None:
    executor = Compiled(small_step(), threads)
    result = chain(executor, 400)
    for _ in range(6):
        result.data[:] = 0
        executor.run()
        assert (result.data == 400).all()
    executor.close()


def test_independent_operations_share_a_barrier() -> None:
    executor = Compiled(small_step(), 1)
    a, b, d = (executor.buffer(16) for _ in range(3))

    def forward(k: Recorder) -> None:
        k.scale(a, a, 2.0)
        k.scale(b, b, 2.0)  # touches other memory: no barrier
        k.add(d, a, b)  # reads both
        k.scale(a.columns(0, 8), a.columns(0, 8), 2.0)  # writes what the last one read
        k.scale(a.columns(8, 16), a.columns(8, 16), 2.0)  # the other half: no barrier
        k.scale(d, b, 1.0)  # writes d again, which nothing has read since: still a barrier before

    executor.record(forward)
    waits = [entry.barrier for entry in executor.tape.entries]
    assert waits == [False, True, True, False, False, False]
    assert executor.tape.barriers == 3
    executor.close()


def test_derived_memory_is_forgotten_when_its_source_is_written() -> None:
    tape = Tape(small_step(), lease(1))
    x, made = Buf(np.zeros((8, 32), np.float32)), []

    def derive(part: Buf) -> object:
        return tape.derived("form", part, lambda: made.append(1) or object())

    first = derive(x.columns(0, 16))
    assert derive(x.columns(0, 16)) is first
    tape.add("loop.nop", "tokens", [], [x.columns(16, 32)])
    assert derive(x.columns(0, 16)) is first, "other columns were written"
    tape.add("loop.nop", "tokens", [], [x])
    assert derive(x.columns(0, 16)) is not first
    give_back(tape.pool)


def test_unknown_parameters_are_refused_by_name() -> None:
    pool = lease(1)
    with pytest.raises(TypeError, match="widht"):
        pool.call("rows.scale", out=0, out_stride=0, x=0, x_stride=0, widht=1, by=1.0)
    give_back(pool)


def states(pool: Pool) -> list[int]:
    return [int(pool._control[(c.SLOTS + c.LINE * i) // 8]) for i in range(pool.threads - 1)]


def test_workers_sleep_between_steps_and_wake_for_the_next() -> None:
    executor = Compiled(small_step(), 3)
    result = chain(executor, 50)
    for _ in range(5):
        result.data[:] = 0
        executor.run()
        assert (result.data == 50).all()
        deadline = time.monotonic() + 5
        while states(executor._pool) != [c.ASLEEP] * 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert states(executor._pool) == [c.ASLEEP] * 2
    executor.close()


def test_a_dead_worker_hangs_nobody() -> None:
    pool = Pool(3)
    pool.close()  # both workers leave
    deadline = time.monotonic() + 5
    while states(pool) != [c.GONE] * 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    x = np.ones(16, np.float32)
    at = x.ctypes.data
    pool.call("rows.scale", out=at, out_stride=64, x=at, x_stride=64, width=16, by=3.0)
    assert (x == 3).all()


def test_the_pool_is_shared_and_stops_with_its_last_user() -> None:
    first, second = lease(7), lease(7)
    assert first is second
    give_back(first)
    assert lease(7) is first
    give_back(first)
    give_back(first)
    fresh = lease(7)
    assert fresh is not first
    give_back(fresh)


def test_two_models_at_once_take_turns() -> None:
    executors = [Compiled(small_step(), 2) for _ in range(3)]
    results = [chain(executor, 100) for executor in executors]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            results[i].data[:] = 0
            executors[i].run()
            if not (results[i].data == 100).all():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for executor in executors:
        executor.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_an_interrupt_never_cuts_a_step_in_half() -> None:
    executor = Compiled(small_step(), 2)
    result = chain(executor, 2000)
    caught = 0

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(60):
            result.data[:] = 0
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-5 * i)
                executor.run()
                time.sleep(0.01)
            except KeyboardInterrupt:
                caught += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert set(np.unique(result.data)) <= {0.0, 2000.0}, "half a step was done"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught
    result.data[:] = 0
    executor.run()
    assert (result.data == 2000).all()
    executor.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_runs_without_the_workers() -> None:
    code = (
        "import os, numpy as np\n"
        "from llamoot.kernels.pool import lease\n"
        "pool = lease(2)\n"
        "x = np.ones(16, np.float32); a = x.ctypes.data\n"
        "go = lambda: pool.call('rows.scale', out=a, out_stride=64, x=a, x_stride=64,"
        " width=16, by=3.0)\n"
        "go()\n"
        "if os.fork() == 0:\n"
        "    go()\n"
        "    os._exit(0 if (x == 9).all() else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0


def test_threads_default_to_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5}, raising=False)
    assert cores.usable() == 6
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert cores.usable() == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    for cpu in range(6):  # three cores of two threads each
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    assert cores.usable() == 3


def test_threads_can_be_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMOOT_THREADS", "3")
    executor = Compiled(small_step())
    assert executor.threads == 3
    executor.close()
    executor.close()


def test_a_closed_executor_keeps_no_memory_of_its_tape() -> None:
    executor = Compiled(small_step(), 1)
    kept = weakref.ref(chain(executor, 3))
    assert kept() is not None
    executor.close()
    gc.collect()
    assert kept() is None
