"""The clients of `load.py`, in a process of their own: they print one JSON line of what they saw.

python bench/server/clients.py load PORT CLIENTS TOKENS ROUND VOCABULARY
python bench/server/clients.py soak PORT SECONDS CLIENTS
"""

import asyncio
import json
import random
import sys
import time
from typing import Any

PROMPT = 32  # tokens of each prompt of a load round


def prompt(number: int, client: int, vocab: int) -> list[int]:
    """Ids that no other round has, so that no prefix is found again."""
    rng = random.Random(number * 1000 + client)
    return [rng.randrange(300, vocab - 300) for _ in range(PROMPT)]


async def post(port: int, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """The two ends of a connection whose request has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    await writer.drain()
    return reader, writer


async def one(port: int, ids: list[int], tokens: int) -> tuple[float, int]:
    """Seconds to the first token of a streamed answer, and how many tokens it had."""
    began = time.perf_counter()
    options = {"include_usage": True}
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True}
    reader, writer = await post(port, "/v1/completions", body | {"stream_options": options})
    first, n = 0.0, 0
    async for line in reader:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            usage = json.loads(line[6:]).get("usage")
            n = usage["completion_tokens"] if usage else n
    writer.close()
    return first, n


async def load(port: int, clients: int, tokens: int, number: int, vocab: int) -> dict[str, Any]:
    prompts = [prompt(number, client, vocab) for client in range(clients)]
    began = time.perf_counter()
    seen = await asyncio.gather(*(one(port, ids, tokens) for ids in prompts))
    seconds = time.perf_counter() - began
    total = sum(n for _, n in seen)
    return {"tokens": total, "seconds": seconds, "first": max(first for first, _ in seen)}


def random_body(rng: random.Random) -> tuple[str, dict[str, Any]]:
    text = "Once upon a time " * rng.randrange(1, 20)
    how: dict[str, Any] = {"max_tokens": rng.randrange(1, 200), "stream": rng.random() < 0.6}
    if rng.random() < 0.2:
        how["n"] = rng.randrange(1, 5)
    if rng.random() < 0.1:
        how["guided_choice"] = ["yes", "no"]
    if rng.random() < 0.1:
        text *= 100  # more than the context holds: a 400
    if rng.random() < 0.5:
        return "/v1/completions", how | {"prompt": text}
    turn = {"role": "user", "content": text}
    if rng.random() < 0.3:
        how.pop("n", None)
        how.pop("guided_choice", None)
        return "/v1/messages", how | {"messages": [turn]}
    return "/v1/chat/completions", how | {"messages": [turn]}


async def wander(port: int, ends: float, seed: int, seen: dict[str, int]) -> None:
    """Ask until the time is up; leave half of the answers at a random moment."""
    rng = random.Random(seed)
    while time.monotonic() < ends:
        reader, writer = await post(port, *random_body(rng))
        patience = rng.random() * 0.3 if rng.random() < 0.5 else 60.0
        try:
            async with asyncio.timeout(patience):
                answer = await reader.read()
            seen[answer[9:12].decode() or "none"] = seen.get(answer[9:12].decode() or "none", 0) + 1
        except (TimeoutError, ConnectionError):
            seen["left"] = seen.get("left", 0) + 1
            if rng.random() < 0.5:
                writer.transport.abort()
        writer.close()


async def soak(port: int, seconds: float, clients: int) -> dict[str, Any]:
    seen: dict[str, int] = {}
    ends = time.monotonic() + seconds
    await asyncio.gather(*(wander(port, ends, seed, seen) for seed in range(clients)))
    return seen


def main() -> None:
    kind, *numbers = sys.argv[1:]
    if kind == "load":
        port, clients, tokens, number, vocab = map(int, numbers)
        print(json.dumps(asyncio.run(load(port, clients, tokens, number, vocab))))
    else:
        port, clients = int(numbers[0]), int(numbers[2])
        print(json.dumps(asyncio.run(soak(port, float(numbers[1]), clients))))


if __name__ == "__main__":
    main()
