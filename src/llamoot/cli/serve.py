"""`llamoot serve`: models and councils behind one OpenAI-compatible server, with a page."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import uvicorn

from llamoot import env
from llamoot.agents.discovery import discover
from llamoot.cli.options import Argument, Option
from llamoot.council import config as configuration
from llamoot.council.store import Store
from llamoot.errors import ConfigError, LlamootError
from llamoot.server.app import create_app
from llamoot.server.build import registry_of
from llamoot.server.connections import Connection
from llamoot.server.gate import Limits, is_loopback, read_keys
from llamoot.server.registry import Registry
from llamoot.server.state import State

KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections in their pools
DRAIN = 20  # seconds that running requests get after SIGTERM

Names = Annotated[list[str] | None, Argument(help="model files, or names of the models here")]


def serve(
    models: Names = None,
    config: Annotated[Path | None, Option("--config", "-c", help="llamoot.toml")] = None,
    host: Annotated[str, Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, Option("--port", "-p", min=0, max=65535)] = 8080,
    api_key_file: Annotated[Path | None, Option(help="keys, one a line")] = None,
    insecure: Annotated[bool, Option(help="listen beyond loopback without a key")] = False,
    allow_host: Annotated[list[str] | None, Option(help="further Host names")] = None,
    allow_origin: Annotated[list[str] | None, Option(help="web pages that may call")] = None,
    memory: Annotated[float, Option(min=0, help="GB for all loaded models; 0: no limit")] = 0,
    max_requests: Annotated[int, Option(min=1, help="running at once")] = 256,
    max_body_mb: Annotated[float, Option(min=0.001, help="largest request body")] = 16,
    record: Annotated[bool, Option(help="keep the runs of councils")] = True,
    preload: Annotated[bool, Option(help="open the named models before serving")] = False,
) -> None:
    """Serve models and councils. Without arguments: the configuration, or what is found here."""
    keys = read_keys(api_key_file) if api_key_file else ()
    if own := env.get("LLAMOOT_API_KEY"):
        keys = (*keys, own)
    if not (is_loopback(host) or keys or insecure):
        message = f"refusing to listen on {host} without a key; give --api-key-file or --insecure"
        raise ConfigError("serve", "host", message)
    store = _store() if record else None
    registry = _registry(models or [], config, store, int(memory * 1e9))
    limits = Limits(
        keys=keys,
        hosts=(host, *(allow_host or ()), *(("*",) if insecure else ())),
        origins=tuple(allow_origin or ()),
        max_body=int(max_body_mb * (1 << 20)),
        max_requests=max_requests,
    )
    state = State(registry, store, ready=not preload)
    asyncio.run(_serve(state, limits, host, port, preload))


def _registry(models: list[str], config: Path | None, store: Store | None, memory: int) -> Registry:
    path = configuration.find(config) if config or not models else None
    loaded = configuration.load(path) if path else None
    specs = [] if models or loaded else asyncio.run(discover())
    return registry_of(models, specs, loaded, store, memory)


def _store() -> Store | None:
    try:
        return Store(env.data_folder() / "runs.sqlite")
    except LlamootError as error:
        print(f"llamoot: runs are not kept: {error}", file=sys.stderr)
        return None


async def _serve(state: State, limits: Limits, host: str, port: int, preload: bool) -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(state, limits),
            host=host,
            port=port,
            http=Connection,
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=DRAIN,
            server_header=False,
        )
    )
    running = asyncio.create_task(server.serve())
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if server.started:
        bound = server.servers[0].sockets[0].getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        names = ", ".join(state.registry.entries)
        print(f"llamoot: http://{shown}:{bound}/  serving {names}", file=sys.stderr, flush=True)
    if preload and server.started:
        await _preload(state)
    await running
    if not server.started:
        raise ConfigError("serve", "port", f"cannot listen on {host}:{port}; is it in use?")


async def _preload(state: State) -> None:
    for name, entry in state.registry.entries.items():
        if entry.kind == "local":
            (await state.registry.lease(name)).release()
    state.ready = True
