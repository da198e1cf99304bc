"""From file names and a configuration to a server's table of models."""

import dataclasses
from pathlib import Path

from llamoot.agents.catalog import open_agent
from llamoot.agents.files import find_model
from llamoot.agents.types import AgentSpec
from llamoot.council.agent import CouncilAgent
from llamoot.council.config import Config, resolve
from llamoot.council.council import Council
from llamoot.council.panel import panel, spec_of
from llamoot.council.store import Store
from llamoot.errors import ConfigError
from llamoot.server.registry import Entry, Registry


def local_entry(spec: AgentSpec) -> Entry:
    """A model file, opened when it is first asked for."""
    path = find_model(spec.model)
    parts = path.stem.rpartition("-00001-of-")[0] or path.stem
    name = spec.id or parts
    details = {"n_bytes": path.stat().st_size, "file": path.name}
    if spec.context_length:
        details["context_length"] = spec.context_length
    return Entry(name, "local", lambda: open_agent(spec), details, int(path.stat().st_mtime))


def remote_entry(spec: AgentSpec) -> Entry:
    """An endpoint's model under our name: the server is a gateway to it."""
    return Entry(spec.id, "remote", lambda: open_agent(spec), {})


def council_entry(config: Config, name: str, store: Store | None) -> Entry:
    """A council as the model `council/NAME`."""
    council = Council(panel(config, name), open_agent, store=store)
    agent = CouncilAgent(council)
    details = {"council": council, "members": [p.spec.id for p in council.panel.places]}
    return Entry(f"council/{name}", "council", lambda: agent, details)


def entries_of(models: list[str], specs: list[AgentSpec]) -> list[Entry]:
    """Entries for the given files or model names and specifications; names are told apart."""
    wanted = [AgentSpec(id=Path(find_model(m)).stem, model=str(find_model(m))) for m in models]
    found: dict[str, Entry] = {}
    for spec in [*wanted, *specs]:
        entry = remote_entry(spec) if spec.base_url or spec.script else local_entry(spec)
        name, number = entry.name, 2
        while entry.name in found:
            entry = dataclasses.replace(entry, name=f"{name}#{number}")
            number += 1
        found[entry.name] = entry
    return list(found.values())


def registry_of(
    models: list[str],
    specs: list[AgentSpec],
    config: Config | None,
    store: Store | None,
    memory: int = 0,
) -> Registry:
    """The whole table: files, specifications, the configuration's agents and councils."""
    if config is not None:
        named = [resolve(config, name, f"agents.{name}") for name in config.agents]
        specs = [*specs, *(spec_of(config, conf) for conf in named)]
    entries = entries_of(models, specs)
    for name in config.councils if config is not None else ():
        assert config is not None
        entries.append(council_entry(config, name, store))
    if not entries:
        raise ConfigError("serve", "models", "there is nothing to serve; name a model file")
    return Registry(entries, memory)
