"""`llamoot embed`: embeddings of texts, or of token ids."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

import numpy as np

from llamoot.agents.files import find_model
from llamoot.agents.model import Model
from llamoot.cli.logits import token_ids
from llamoot.cli.options import Argument, Option
from llamoot.errors import BadRequest


def embed(
    model: Annotated[str, Argument(help="GGUF file, or the name of a model that is here")],
    texts: Annotated[
        list[str] | None, Argument(help="one vector for each; none: lines of stdin")
    ] = None,
    tokens: Annotated[
        list[str] | None, Option("--tokens", "-t", help="token ids instead: 1,2,3")
    ] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="write float32 .npy")] = None,
    raw: Annotated[bool, Option("--raw", help="do not bring vectors to length 1")] = False,
    json: Annotated[bool, Option("--json", help="one JSON object on stdout")] = False,
) -> None:
    """One vector for each text, pooled as the model file says."""
    if tokens and texts:
        raise BadRequest("give texts, or token ids with --tokens", "texts")
    asked: list[str] | list[list[int]] = [token_ids(t) for t in tokens or []] or texts or []
    opened = Model(find_model(model))
    try:
        vectors = np.stack(opened.embed(asked or _lines(), normalize=not raw))
    finally:
        opened.close()
    if out is not None:
        np.save(out, vectors)
    if json:
        print(jsonlib.dumps({"model": str(model), "embeddings": vectors.tolist()}))
    elif out is None:
        for vector in vectors:
            print(" ".join(f"{v:.6f}" for v in vector))


def _lines() -> list[str]:
    lines = [line for line in sys.stdin.read().split("\n") if line]
    if not lines:
        raise BadRequest("there is no text; give some, or lines on stdin", "texts")
    return lines
