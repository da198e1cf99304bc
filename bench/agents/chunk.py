"""CPU per streamed chunk of this package's HTTP agent, beside `openai`, `litellm` and bare httpx.

One server process on loopback sends the same long stream to each client in turn, one HTTP chunk
per event: as fast as it is taken, and a short one at the pace of a model (2 ms between events, so
that every event is a wake-up of its own). Counted is the CPU of the client's process over the
whole answer, divided by the chunks; the clients take turns, best and median of the rounds are told.

    python bench/agents/chunk.py [--chunks 4000] [--rounds 9] [--out bench/results/chunk.json]
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import multiprocessing
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import answer
from llamoot.agents.types import ChatRequest, Message

Client = Callable[[str], Awaitable[int]]
PACED = 300  # chunks of the slow stream


def serve(pipe: Connection, chunks: int) -> None:
    """Answer every POST with the stream; runs until the parent ends."""
    events = answer(*(f" {i % 1000:04}" for i in range(chunks))).split(b"\n\n")[:-1]
    framed = [b"%x\r\n%s\n\n\r\n" % (len(e) + 2, e) for e in events]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(request.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                paced = b"/paced/" in request
                writer.write(head + b"\r\n")
                for part in [*framed[:PACED], *framed[-3:]] if paced else framed:
                    writer.write(part)
                    await writer.drain()
                    if paced:
                        await asyncio.sleep(0.002)
                writer.write(b"0\r\n\r\n")
                await writer.drain()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def ours(url: str) -> int:
    """This package: typed errors, five timers, tools, reasoning, usage; all of the contract."""
    agent, count = OpenAIAgent("A", "m", url), 0
    async for token in agent.chat(ChatRequest(messages=(Message("user", "Hi"),))):
        count += len(token.text)
    await agent.close()
    return count


def others() -> dict[str, Client]:
    """What is installed of the clients to compare with."""
    found: dict[str, Client] = {}
    with contextlib.suppress(ImportError):
        import openai

        async def by_openai(url: str) -> int:
            count = 0
            async with openai.AsyncOpenAI(base_url=url, api_key="x") as client:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
                )
                async for part in stream:
                    if part.choices:
                        count += len(part.choices[0].delta.content or "")
            return count

        found["openai"] = by_openai
    with contextlib.suppress(ImportError):
        import litellm

        async def by_litellm(url: str) -> int:
            count = 0
            stream = await litellm.acompletion(
                model="openai/m", api_base=url, api_key="x", stream=True,
                messages=[{"role": "user", "content": "Hi"}],
            )  # fmt: skip
            async for part in stream:
                count += len(part.choices[0].delta.content or "") if part.choices else 0
            return count

        found["litellm"] = by_litellm
    with contextlib.suppress(ImportError):
        import httpx

        async def by_httpx(url: str) -> int:
            count = 0
            async with (
                httpx.AsyncClient() as client,
                client.stream("POST", f"{url}/chat/completions", json={}) as response,
            ):
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        for one in json.loads(line[6:])["choices"]:
                            count += len(one["delta"].get("content") or "")
            return count

        found["httpx and json"] = by_httpx
    return found


def version(name: str) -> str:
    package = {"llamoot": "llamoot", "httpx and json": "httpx"}.get(name, name)
    return importlib.metadata.version(package)


def main() -> None:
    """Measure, print a table, write the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--chunks", type=int, default=4000)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", default="bench/results/chunk.json")
    chosen = options.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, chosen.chunks), daemon=True)
    server.start()
    clients = {"llamoot": ours, **others()}
    root = f"http://127.0.0.1:{here.recv()}"
    fast = measure(clients, f"{root}/v1", chosen.chunks, chosen.rounds)
    print(f"{PACED} chunks, 2 ms apart:")
    paced = measure(clients, f"{root}/paced/v1", PACED - 1, 3)
    server.terminate()
    told = {
        "what": "CPU microseconds per streamed chunk, whole answer, client process",
        "machine": processor(),
        "python": sys.version.split()[0],
        "chunks": chosen.chunks,
        "rounds": chosen.rounds,
        "clients": fast,
        "clients_paced": paced,
    }
    pathlib.Path(chosen.out).write_text(json.dumps(told, indent=1) + "\n")


def measure(
    clients: dict[str, Client], url: str, chunks: int, rounds: int
) -> dict[str, dict[str, object]]:
    """Let the clients take turns; CPU microseconds per chunk of each."""
    times: dict[str, list[float]] = {name: [] for name in clients}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(rounds + 1):
        for name, client in clients.items():
            start, clock = time.process_time(), time.perf_counter()
            letters = asyncio.run(client(url))
            spent, clock = time.process_time() - start, time.perf_counter() - clock
            assert letters == 5 * chunks, f"{name} lost text: {letters} letters"
            if turn:  # the first warms imports and caches
                times[name].append(spent / chunks * 1e6)
                rates[name].append(chunks / clock)
    rows: dict[str, dict[str, object]] = {}
    for name, row in times.items():
        best, middle = min(row), statistics.median(row)
        ratio = best / min(times["llamoot"])
        rows[name] = {
            "version": version(name),
            "best_us": round3(best),
            "median_us": round3(middle),
            "times_ours": round3(ratio),
            "chunks_per_s": round(max(rates[name])),
        }
        print(f"{name:16} {version(name):8} {best:8.2f} µs best, {middle:8.2f} µs median, "
              f"{ratio:6.1f} × ours, {max(rates[name]):8.0f} chunks/s")  # fmt: skip
    return rows


def round3(value: float) -> float:
    return round(value, 3)


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
