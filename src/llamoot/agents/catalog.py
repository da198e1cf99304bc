"""From a specification to an agent: scripted, remote or local.

Opening an agent opens no socket and reads no model; that happens when it is first asked. The
local engine is imported here, and only when a local model is opened: a council of remote agents
never pays for it. Agents of one model file share one engine (agents/local.py sees to that).
"""

import difflib
from pathlib import Path

from llamoot import env
from llamoot.agents.client import Timers
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.scripted import ScriptedAgent
from llamoot.agents.types import Agent, AgentSpec
from llamoot.errors import UnknownModel

BUILT_IN = Path(__file__).parents[1] / "models" / "abacus.gguf"


def open_agent(spec: AgentSpec) -> Agent:
    """The agent that `spec` describes. Raises ConfigError, UnknownModel."""
    if spec.script:
        return ScriptedAgent(
            spec.id,
            list(spec.script),
            model=spec.model or "scripted",
            timeout=spec.timeout,
            context_length=spec.context_length,
        )
    if spec.base_url:
        return OpenAIAgent(
            spec.id,
            spec.model,
            spec.base_url,
            key=env.secret(spec.api_key_env) if spec.api_key_env else "",
            headers=spec.headers,
            timers=timers_of(spec),
            retries=2 if spec.retries is None else spec.retries,
            context_length=spec.context_length,
            ca_file=spec.ca_file,
            proxy=spec.proxy or None,
        )
    path = find_model(spec.model)
    from llamoot.agents.local import LocalAgent, Settings

    settings = Settings(context=spec.context_length or 0)
    return LocalAgent(spec.id, path, settings=settings, model=spec.model or path.stem)


def timers_of(spec: AgentSpec) -> Timers:
    """The five limits of `spec`, defaults where it names none."""
    usual = Timers()
    return Timers(
        connect=spec.connect_timeout or usual.connect,
        write=spec.write_timeout or usual.write,
        first_token=spec.first_token_timeout or usual.first_token,
        idle=spec.idle_timeout or usual.idle,
        total=spec.timeout or usual.total,
    )


def find_model(name: str) -> Path:
    """The GGUF file called `name`: a path, a file of the models folder with or without its
    ending, or the built-in model ("", "abacus"). Raises UnknownModel."""
    if name in ("", BUILT_IN.stem) and BUILT_IN.is_file():
        return BUILT_IN
    folder = env.models_folder()
    given = Path(name).expanduser()
    for path in (given, folder / name, folder / f"{name}.gguf"):
        if name and path.is_file():
            return path
    known = {path.stem: path for path in local_models()}
    meant = [path for stem, path in known.items() if name and stem.lower() == name.lower()]
    meant = meant or [p for stem, p in known.items() if name and name.lower() in stem.lower()]
    if len(meant) == 1:
        return meant[0]
    if meant:
        names = ", ".join(sorted(path.stem for path in meant))
        raise UnknownModel(f"'{name}' may be any of {names} in {folder}; write more of it", "model")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else "`llamoot pull` downloads models"
    raise UnknownModel(f"no model file '{name}', neither here nor in {folder}; {hint}", "model")


def local_models() -> list[Path]:
    """Model files of the models folder: first parts of split files, no projectors."""
    folder = env.models_folder()
    if not folder.is_dir():
        return []
    return [
        path
        for path in sorted(folder.rglob("*.gguf"))
        if "mmproj" not in path.name.lower()
        and ("-of-" not in path.stem or "-00001-of-" in path.stem)
    ]
