"""Vectors from a `/v1/embeddings` endpoint, and the list of models an endpoint serves."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from llamoot.agents.client import Client, Timers
from llamoot.agents.endpoint import Endpoint, Secret
from llamoot.errors import Stream


class RemoteEmbedder:
    """An `Embedder` (agents/types.py) behind an endpoint; texts go in batches."""

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        key: Secret | str = "",
        headers: Mapping[str, str | Secret] | None = None,
        timers: Timers | None = None,
        retries: int = 2,
        ca_file: str = "",
        proxy: str | None = None,
        batch: int = 64,
        id: str = "embedder",
    ) -> None:
        self.id, self.model, self.batch = id, model, batch
        self.endpoint = Endpoint(base_url, key=key, headers=headers, model=model)
        self.client = Client(
            id, self.endpoint, timers or Timers(), retries=retries, ca_file=ca_file, proxy=proxy
        )

    async def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, in order, all of one length. Raises AgentError."""
        out: list[list[float]] = []
        for start in range(0, len(texts), self.batch):
            part = texts[start : start + self.batch]
            body = {"model": self.model, "input": part, "encoding_format": "float"}
            found = await self.client.ask("POST", "embeddings", body)
            out += self._vectors(found, len(part))
        if len({len(vector) for vector in out}) > 1:
            raise Stream(self.id, f"{self.endpoint} sent vectors of different lengths")
        return out

    def _vectors(self, found: Any, count: int) -> list[list[float]]:
        rows = found.get("data") if isinstance(found, dict) else None
        try:
            if not isinstance(rows, list) or len(rows) != count:
                raise ValueError(f"{count} vectors were asked for")
            vectors: list[list[float]] = [[]] * count
            for place, row in enumerate(rows):
                vectors[int(row.get("index", place))] = _floats(row["embedding"])
            if not all(vectors):
                raise ValueError("some vectors are missing")
        except (ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
            raise Stream(self.id, f"{self.endpoint} sent no usable vectors: {error}") from None
        return vectors

    async def close(self) -> None:
        """Idle connections that no agent uses are closed."""
        self.client.close()


def _floats(value: Any) -> list[float]:
    if isinstance(value, str):  # base64 of little-endian float32, the form some servers prefer
        packed = base64.b64decode(value)
        value = struct.unpack(f"<{len(packed) // 4}f", packed)
    vector = [float(x) for x in value]
    if not all(abs(x) < 1e30 for x in vector):  # also false for NaN
        raise ValueError("a vector holds a number that is not finite")
    return vector


class ServedModel(Struct, frozen=True):
    """One row of an endpoint's list of models; `context_length` is in tokens, where it is told."""

    id: str
    context_length: int | None = None


async def list_models(client: Client) -> list[ServedModel]:
    """The models the endpoint serves, in its order. Raises AgentError."""
    found = await client.ask("GET", "models")
    rows = found.get("data", found.get("models")) if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise Stream(client.who, f"{client.endpoint.shown('models')} sent no list of models")
    out = []
    for row in rows:
        name = row.get("id", row.get("name")) if isinstance(row, dict) else None
        if isinstance(name, str) and name:
            out.append(ServedModel(name, _context(row)))
    return out


def _context(row: dict[str, Any]) -> int | None:
    """Each server has its own word for it: vLLM, OpenRouter, Groq, LM Studio, llama-server."""
    meta = row.get("meta")
    found = [row.get(name) for name in ("max_model_len", "context_length", "context_window",
                                        "max_context_length")]  # fmt: skip
    if isinstance(meta, dict):
        found += [meta.get("n_ctx"), meta.get("n_ctx_train")]
    return next((n for n in found if type(n) is int and n > 0), None)
