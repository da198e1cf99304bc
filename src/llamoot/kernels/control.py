"""The words that the threads of a pool share, and where they lie (byte offsets from `control`).

A worker's slot says what it does. It is captured only while it waits inside native code, so a
thread that sleeps, or died in Python, is simply not part of the next step and can hang nobody.
"""

LINE = 64  # words written by different threads stand on different cache lines

ARRIVED, PHASE = 0, LINE  # the barrier: how many have come, how often it has opened
TAPE, N_OPS, THREADS, YIELD = (2 * LINE + 8 * i for i in range(4))
SLOTS = 3 * LINE  # one line for each worker:
STATE, INDEX = 0, 8

ASLEEP, READY, CAPTURED, RUNNING, GONE = range(5)  # STATE

# An entry of the tape: address of the kernel's entry, of its words, and whether a barrier follows.
ENTRY, WORDS, BARRIER, TAPE_BYTES = 0, 8, 16, 24
