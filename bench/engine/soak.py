"""Random sequences at random times with random cancels, for as long as is asked.

    python bench/engine/soak.py MODEL [--seconds 300] [--seqs 64]

Every finished sequence must say what it says alone (temperature 0, or a fixed seed), and after each
round every block of the cache must be free. Prompts share prefixes, some answers are drafted, some
samples are siblings, and the cache is small, so that sequences make way for one another.
"""

import argparse
import random
import time

from llamoot.engine.engine import Engine
from llamoot.engine.sampler import Params
from llamoot.engine.sequence import Sequence
from llamoot.model.runner import open_runner


def text(rng: random.Random, n: int, vocab: int) -> list[int]:
    return [1, *(rng.randrange(3, vocab) for _ in range(n))]


def sequences(rng: random.Random, n: int, vocab: int) -> list[Sequence]:
    """`n` sequences; about one in eight brings up to three siblings."""
    prefixes = [text(rng, rng.randrange(200), vocab) for _ in range(4)]
    made = []
    for _ in range(n):
        ids = rng.choice(prefixes) + text(rng, rng.randrange(60), vocab)
        most, seed = rng.randrange(1, 60), rng.randrange(1 << 30)
        greedy = rng.random() < 0.5
        family = []
        for i in range(rng.choice([1, 1, 1, 1, 1, 1, 1, 4])):
            params = Params(temperature=0) if greedy else Params(seed=seed + i, top_k=40)
            drafts = (text(rng, 80, vocab),) if rng.random() < 0.2 else ()
            family.append(Sequence(list(ids), params, max_new=most, drafts=drafts))
        family[0].siblings = family[1:]
        made.append(family[0])
    return made


def round_of(rng: random.Random, engine: Engine, alone: Engine, n: int) -> tuple[int, int]:
    """One round: how many finished, how many were cancelled."""
    vocab = engine.runner.config.n_vocab
    todo = sequences(rng, n, vocab)
    everybody = [member for seq in todo for member in (seq, *seq.siblings)]
    while todo or engine.n_running or engine.n_waiting:
        for _ in range(min(len(todo), rng.randrange(0, 5))):
            engine.submit(todo.pop())
        if rng.random() < 0.1:
            engine.cancel(rng.choice(everybody))
        engine.step()
    assert engine.blocks.n_free == engine.n_blocks, "a block was lost"
    ended = [seq for seq in everybody if seq.finish in ("stop", "length")]
    for seq in ended:
        twin = Sequence(seq.ids[: seq.n_prompt], seq.params, max_new=seq.max_new)
        alone.submit(twin)
        while alone.step():
            pass
        assert twin.ids == seq.ids, f"{seq.params}: {seq.ids[seq.n_prompt :]} in company"
    return len(ended), len(everybody) - len(ended)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model")
    options.add_argument("--seconds", type=float, default=300)
    options.add_argument("--seqs", type=int, default=64)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    rng, started, rounds, ended, gone = random.Random(args.seed), time.monotonic(), 0, 0, 0
    company = open_runner(args.model, max_seqs=8, context=512, n_blocks=48, max_tokens=128)
    single = open_runner(args.model, max_seqs=1, context=512)
    engine, alone = Engine(company, company.n_blocks), Engine(single, single.n_blocks)
    while time.monotonic() - started < args.seconds:
        e, g = round_of(rng, engine, alone, args.seqs)
        rounds, ended, gone = rounds + 1, ended + e, gone + g
    engine.close()
    alone.close()
    print(
        f"{rounds} rounds in {time.monotonic() - started:.0f} s: {ended} sequences equal their "
        f"solo runs, {gone} were cancelled, {engine.n_steps} steps, no block lost"
    )


if __name__ == "__main__":
    main()
