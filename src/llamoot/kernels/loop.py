"""The loop every thread runs over the tape: call, barrier, call, barrier.

`lead` is called by the thread that wants a step done, `serve` by the workers of the pool, which
wait in it for the next step. Layout of the shared words: `control.py`.
"""

from llamoot.kernels.atomics import (
    call_entry,
    call_plain,
    fetch_add,
    load_word,
    pause,
    store_word,
    swap_if,
)
from llamoot.kernels.control import (
    ARRIVED,
    ASLEEP,
    BARRIER,
    CAPTURED,
    ENTRY,
    INDEX,
    LINE,
    N_OPS,
    PHASE,
    READY,
    RUNNING,
    SLOTS,
    STATE,
    TAPE,
    TAPE_BYTES,
    THREADS,
    WORDS,
    YIELD,
)
from llamoot.kernels.op import inner, op

SPINS = 40  # pauses (one or two µs) before a waiting thread offers its processor to others


@inner
def _wait(control: int, spins: int) -> None:
    """One turn of waiting."""
    pause()
    if spins > SPINS and load_word(control + YIELD) != 0:
        call_plain(load_word(control + YIELD))


@inner
def _barrier(control: int, threads: int) -> None:
    phase = load_word(control + PHASE)
    if fetch_add(control + ARRIVED, 1) == threads - 1:
        store_word(control + ARRIVED, 0)
        store_word(control + PHASE, phase + 1)
        return
    spins = 0
    while load_word(control + PHASE) == phase:
        spins += 1
        _wait(control, spins)


@inner
def _walk(control: int, index: int, threads: int) -> None:
    """The tape, as thread `index`; its last entry has a barrier."""
    entry = load_word(control + TAPE)
    end = entry + TAPE_BYTES * load_word(control + N_OPS)
    while entry < end:
        call_entry(load_word(entry + ENTRY), load_word(entry + WORDS), index, threads)
        if threads > 1 and load_word(entry + BARRIER) != 0:
            _barrier(control, threads)
        entry += TAPE_BYTES


@inner
def _settled(control: int, slots: int, patience: int) -> bool:
    """Wait until no worker is running and none asleep; False if some still sleep at last."""
    spins = 0
    while True:
        asleep = running = 0
        for i in range(slots):
            state = load_word(control + SLOTS + LINE * i + STATE)
            asleep += state == ASLEEP
            running += state == RUNNING
        if running == 0 and (asleep == 0 or spins >= patience):
            return asleep == 0
        spins += 1
        _wait(control, spins)


@op
def lead(
    work: int,
    rows: int,
    thread: int,
    threads: int,
    control: int,
    slots: int,
    tape: int,
    n_ops: int,
    counters: int,
    patience: int,
    strict: int,
    done: int,
) -> None:
    """Run a tape with every worker that is awake; writes 1 to `done`.

    With `strict`, nothing is run and `done` stays 0 where a worker sleeps.
    """
    if not _settled(control, slots, patience) and strict != 0:
        return
    for i in range(n_ops):
        store_word(counters + LINE * i, 0)
    store_word(control + TAPE, tape)
    store_word(control + N_OPS, n_ops)
    members = 1
    for i in range(slots):
        slot = control + SLOTS + LINE * i
        if swap_if(slot + STATE, READY, CAPTURED):
            store_word(slot + INDEX, members)
            members += 1
    store_word(control + THREADS, members)
    for i in range(slots):
        swap_if(control + SLOTS + LINE * i + STATE, CAPTURED, RUNNING)
    _walk(control, 0, members)
    store_word(done, 1)


@op
def serve(
    work: int, rows: int, thread: int, threads: int, control: int, slot: int, patience: int
) -> None:
    """Run tapes whenever `lead` says so; returns after `patience` turns without one."""
    state = slot + STATE
    store_word(state, READY)
    spins = 0
    while True:
        if load_word(state) == RUNNING:
            _walk(control, load_word(slot + INDEX), load_word(control + THREADS))
            store_word(state, READY)
            spins = 0
        spins += 1
        _wait(control, spins)
        if spins > patience and swap_if(state, READY, ASLEEP):
            return


@op
def nop(work: int, rows: int, thread: int, threads: int) -> None:
    """Nothing, to measure what an operation costs."""
