"""From a specification to an agent: scripted, remote or local.

Opening an agent opens no socket and reads no model; that happens when it is first asked. The
local engine is imported here, and only when a local model is opened: a council of remote agents
never pays for it. Agents of one model file share one engine (agents/local.py sees to that).
"""

from llamoot import env
from llamoot.agents.client import Timers
from llamoot.agents.files import find_model
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.scripted import ScriptedAgent
from llamoot.agents.types import Agent, AgentSpec


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
    from llamoot.agents.local import LocalAgent

    return LocalAgent(
        spec.id,
        path,
        model=spec.model or path.stem,
        timeout=spec.timeout,
        context_length=spec.context_length,
    )


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
