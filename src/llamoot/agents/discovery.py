"""What can be asked without any configuration.

In this order: endpoints that the environment names, servers on the usual ports of this machine,
model files of the models folder; and where there is nothing of all that, the built-in model.
Only loopback is probed, quickly and all ports at once.
"""

import asyncio

from msgspec.structs import replace

from llamoot import env
from llamoot.agents.client import Client, Timers
from llamoot.agents.embeddings import list_models
from llamoot.agents.endpoint import Endpoint
from llamoot.agents.files import BUILT_IN, local_models
from llamoot.agents.types import AgentSpec
from llamoot.errors import AgentError, ConfigError

PORTS = (11434, 8080, 8000, 1234, 30000, 4000)  # Ollama, llama-server, vLLM, LM Studio, …
MOST_PER_SERVER = 4  # models of one server that become experts
_PROBE = Timers(connect=0.3, write=0.5, first_token=1.0, idle=0.5, total=1.5)
_ASKED = Timers(connect=2.0, write=2.0, first_token=4.0, idle=2.0, total=5.0)
_NO_CHAT = ("embed", "whisper", "tts", "dall-e", "rerank", "moderation", "audio", "image", "bge-")


async def discover(ports: tuple[int, ...] = PORTS) -> list[AgentSpec]:
    """Specifications of everything found, best known first."""
    places = _named() + [(f"http://127.0.0.1:{port}/v1", "", _PROBE) for port in ports]
    seen: dict[str, tuple[str, str, Timers]] = {}
    for place in places:
        seen.setdefault(place[0].rstrip("/"), place)
    found = await asyncio.gather(*(_serves(*place) for place in seen.values()))
    specs = [spec for part in found for spec in part]
    specs += [AgentSpec(id=path.stem, model=str(path)) for path in local_models()]
    if not specs and BUILT_IN.is_file():
        specs = [AgentSpec(id=BUILT_IN.stem, model=BUILT_IN.stem)]
    return _with_own_ids(specs)


def _named() -> list[tuple[str, str, Timers]]:
    places = []
    base, ollama = env.get("OPENAI_BASE_URL"), env.get("OLLAMA_HOST")
    if base:
        places.append((base, "OPENAI_API_KEY", _ASKED))
    if ollama:
        host = ollama if "://" in ollama else f"http://{ollama}"
        # 0.0.0.0 is where Ollama listens, not where it is reached.
        host = host.replace("//0.0.0.0", "//127.0.0.1")
        if ":" not in host.split("//")[1]:
            host = f"{host}:11434"
        places.append((host, "", _ASKED))
    return places


async def _serves(base_url: str, key_env: str, timers: Timers) -> list[AgentSpec]:
    """The models of one place; none where nobody answers."""
    try:
        endpoint = Endpoint(base_url, key=env.secret(key_env) if key_env else "")
        client = Client("discovery", endpoint, timers, retries=0)
        served = await list_models(client)
    except (AgentError, ConfigError):
        return []
    client.close()
    # A council found here would ask the very experts that are being collected.
    chat = [m for m in served if not m.id.startswith("council/") and not _is_other(m.id)]
    return [
        AgentSpec(
            id=found.id,
            model=found.id,
            base_url=base_url,
            api_key_env=key_env,
            context_length=found.context_length,
        )
        for found in chat[:MOST_PER_SERVER]
    ]


def _is_other(name: str) -> bool:
    return any(word in name.lower() for word in _NO_CHAT)


def _with_own_ids(specs: list[AgentSpec]) -> list[AgentSpec]:
    used: set[str] = set()
    out = []
    for spec in specs:
        name, number = spec.id, 2
        while name in used:
            name, number = f"{spec.id}#{number}", number + 1
        used.add(name)
        out.append(replace(spec, id=name))
    return out
