"""Train the built-in model from nothing but a seed.

    python training/train.py --out runs/abacus        (a good hour on one busy CPU core)

Writes model.pt, tokenizer.json and train.json (the figures); `export.py` turns them into GGUF.
Needs torch; the package itself does not.
"""

import argparse
import json
import math
import pathlib
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from corpus import conversations
from council_turns import TURNS
from model import Abacus, Shape
from tokenizers import Tokenizer
from vocabulary import train as train_vocabulary

POOL = 4096  # conversations grouped by length together
STRIDE = 16  # widths of batches are multiples of this: few shapes, so few kernels to prepare

Row = tuple[list[int], list[int]]


def batches(
    tokenizer: Tokenizer, seed: int, budget: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(tokens, targets), each (batch, length); targets are -100 where the model does not speak."""
    rng = random.Random(seed)
    source = conversations(seed, "train", TURNS)
    left: dict[int, list[Row]] = {}
    while True:
        pool = list(islice(source, POOL))
        asked = tokenizer.encode_batch([p for p, _ in pool])
        said = tokenizer.encode_batch([r for _, r in pool])
        buckets: dict[int, list[Row]] = defaultdict(list)
        for question, answer in zip(asked, said):
            row = (question.ids, answer.ids)
            buckets[-(-(len(row[0]) + len(row[1])) // STRIDE) * STRIDE].append(row)
        groups = []
        for width, rows in buckets.items():
            rows = left.pop(width, []) + rows
            size = budget // width
            groups += [(width, rows[i : i + size]) for i in range(0, len(rows) - size + 1, size)]
            left[width] = rows[len(rows) // size * size :]
        rng.shuffle(groups)
        for width, group in groups:
            yield _pad(group, width)


def _pad(group: list[Row], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.zeros((len(group), width), dtype=torch.long)
    targets = torch.full((len(group), width), -100)
    for i, (asked, said) in enumerate(group):
        row = torch.tensor(asked + said)
        tokens[i, : len(row)] = row
        targets[i, len(asked) - 1 : len(row) - 1] = row[len(asked) :]
    return tokens, targets


def optimizers(model: Abacus, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner = [p for n, p in model.named_parameters() if n.startswith("blk") and p.ndim == 2]
    outer = [p for n, p in model.named_parameters() if not (n.startswith("blk") and p.ndim == 2)]
    return [
        torch.optim.Muon(inner, lr=rate, momentum=0.95, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(outer, lr=rate / 4, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(progress: float, peak: float) -> float:
    """Warm up over 2 %, then fall along a cosine to a hundredth."""
    if progress < 0.02:
        return peak * progress / 0.02
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--budget", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    tokenizer = train_vocabulary(shape.vocab, options.seed, TURNS)
    tokenizer.save(str(options.out / "tokenizer.json"))
    model = Abacus(shape)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    steppers = optimizers(model, options.rate)
    began, seen, average, curve = time.time(), 0, 0.0, []
    source = batches(tokenizer, options.seed, options.budget)
    for step in range(options.steps):
        for stepper in steppers:
            peak = options.rate if isinstance(stepper, torch.optim.Muon) else options.rate / 4
            for group in stepper.param_groups:
                group["lr"] = rate_at(step / options.steps, peak)
        tokens, targets = next(source)
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100)
        loss.backward()
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        seen += tokens.numel()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        if step % 100 == 99:
            speed = seen / (time.time() - began)
            curve.append((step + 1, round(average, 5)))
            print(f"step {step + 1} loss {average:.4f} {speed:.0f} token/s", flush=True)
        if step % 500 == 499 or step + 1 == options.steps:
            torch.save(
                {"shape": shape.as_dict(), "weights": model.state_dict()}, options.out / "model.pt"
            )
            figures = {
                "seed": options.seed,
                "steps": step + 1,
                "tokens": seen,
                "parameters": count,
                "seconds": round(time.time() - began),
                "loss": curve,
            }
            (options.out / "train.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
