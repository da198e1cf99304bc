"""`/v1/embeddings`: texts or token ids to vectors, as floats or base64."""

import base64
import struct
from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from llamoot.errors import BadRequest

MAX_INPUTS = 2048


class EmbeddingBody(Struct, kw_only=True):
    """Body of `/v1/embeddings`."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None
    user: Any = None


class EmbeddingModel(Protocol):
    """What a local model offers: vectors of length 1, and the tokens it read."""

    async def embed(
        self, inputs: "list[str] | list[list[int]]"
    ) -> tuple[Sequence[Sequence[float]], int]: ...


def inputs_of(body: EmbeddingBody) -> "list[str] | list[list[int]]":
    """A list of texts, or a list of token lists."""
    given = [body.input] if isinstance(body.input, str) else body.input
    if not given:
        raise BadRequest("input: is empty", "input")
    if all(isinstance(one, int) for one in given):
        return [[one for one in given if isinstance(one, int)]]
    if all(isinstance(one, list) for one in given):
        return [one for one in given if isinstance(one, list)]
    texts = [one for one in given if isinstance(one, str)]
    if len(texts) < len(given):
        raise BadRequest("input: texts and token ids cannot be mixed", "input")
    if len(texts) > MAX_INPUTS:
        raise BadRequest(f"input: at most {MAX_INPUTS} texts, not {len(texts)}", "input")
    if any(not text for text in texts):
        raise BadRequest("input: a text is empty", "input")
    return texts


def shortened(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first `dimensions` values, of length 1 again (Matryoshka models)."""
    values = [float(x) for x in vector]
    if dimensions is None or dimensions == len(values):
        return values
    if not 1 <= dimensions <= len(values):
        message = f"dimensions: must be between 1 and {len(values)}, not {dimensions}"
        raise BadRequest(message, "dimensions")
    values = values[:dimensions]
    norm = sum(x * x for x in values) ** 0.5 or 1.0
    return [x / norm for x in values]


async def embeddings(agent: EmbeddingModel, body: EmbeddingBody, model: str) -> dict[str, Any]:
    """The list object."""
    if body.encoding_format not in (None, "float", "base64"):
        message = "encoding_format: must be float or base64"
        raise BadRequest(message, "encoding_format")
    vectors, n_tokens = await agent.embed(inputs_of(body))
    rows = []
    for i, vector in enumerate(vectors):
        values: Any = shortened(vector, body.dimensions)
        if body.encoding_format == "base64":
            values = base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        rows.append({"object": "embedding", "index": i, "embedding": values})
    return {
        "object": "list",
        "model": model,
        "data": rows,
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }
