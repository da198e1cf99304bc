"""`llamoot logits`: raw scores of a model for given token ids."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import numpy as np

from llamoot.cli.options import Argument, Option
from llamoot.errors import BadRequest
from llamoot.model.runner import open_runner, run_alone


def token_ids(text: str) -> list[int]:
    """`1,2,3` or `1 2 3` as ids."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise BadRequest(f"{text!r} is not a list of token ids such as 1,2,3", "tokens") from None


def logits(
    model: Annotated[Path, Argument(help="a GGUF file")],
    tokens: Annotated[str, Option("--tokens", "-t", help="token ids: 1,2,3")],
    out: Annotated[Path | None, Option("--out", "-o", help="write float32 .npy")] = None,
    top: Annotated[int, Option("--top", min=1, help="best ids shown per position")] = 5,
    context: Annotated[int, Option("--context", min=0, help="positions; 0: enough")] = 0,
    cache: Annotated[str, Option("--cache-type", help="f32, f16 or q8_0")] = "f32",
    threads: Annotated[int, Option("--threads", min=0, help="0: one per core")] = 0,
    json: Annotated[bool, Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """Logits of every position, as a file (--out) or as the best ids with log-probabilities."""
    ids = token_ids(tokens)
    if cache not in ("f32", "f16", "q8_0"):
        raise BadRequest(f"'{cache}' is not a cache type; take f32, f16 or q8_0", "cache-type")
    runner = open_runner(
        model,
        context=context or max(len(ids), 1),
        max_tokens=min(max(len(ids), 1), 512),
        max_seqs=1,
        cache_type=cache,  # type: ignore[arg-type]
        threads=threads,
    )
    scores = run_alone(runner, ids)
    runner.close()
    if out is not None:
        np.save(out, scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    best = np.argsort(-logprobs, axis=1, kind="stable")[:, :top]
    rows = [
        {
            "pos": pos,
            "token": ids[pos],
            "top": [[int(i), round(float(logprobs[pos, i]), 6)] for i in best[pos]],
        }
        for pos in range(len(ids))
    ]
    if json:
        print(jsonlib.dumps({"model": str(model), "shape": list(scores.shape), "positions": rows}))
    elif out is None:
        for row in rows:
            shown = "  ".join(f"{i}:{p:.4f}" for i, p in row["top"])  # type: ignore[attr-defined]
            print(f"{row['pos']:5}  {row['token']:7}  {shown}")
