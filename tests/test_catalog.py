"""From a specification to an agent, and what is found where nothing is configured."""

import asyncio
import json
import pathlib
import socket
from typing import Any

import pytest

from asking import listen
from llamoot.agents import discovery
from llamoot.agents.catalog import open_agent
from llamoot.agents.discovery import discover
from llamoot.agents.files import BUILT_IN, find_model
from llamoot.agents.http import OpenAIAgent
from llamoot.agents.misbehave import Act, MisbehavingServer, Received
from llamoot.agents.scripted import ScriptedAgent
from llamoot.agents.types import AgentSpec
from llamoot.errors import UnknownModel
from wire_rows import GOOD

pytestmark = pytest.mark.pure


def test_a_script_makes_a_scripted_agent() -> None:
    agent = open_agent(AgentSpec(id="A", script=("one", "two"), timeout=5.0))
    assert isinstance(agent, ScriptedAgent) and agent.timeout == 5.0
    heard = ["".join(t.text for t in asyncio.run(listen(agent))[0]) for _ in range(3)]
    assert heard == ["one", "two", "two"]


def test_a_base_url_makes_a_remote_agent_with_its_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-abcdef")

    async def run() -> None:
        async with MisbehavingServer(Act(body=GOOD)) as server:
            spec = AgentSpec(
                id="A", model="m", base_url=server.url, api_key_env="SOME_KEY", retries=0,
                headers={"X-Team": "blue"}, idle_timeout=7.0, timeout=9.0, context_length=4096,
            )  # fmt: skip
            agent = open_agent(spec)
            assert isinstance(agent, OpenAIAgent)
            assert (agent.timeout, agent.timers.idle, agent.context_length) == (9.0, 7.0, 4096)
            assert (await listen(agent))[1] is None
            sent = server.requests[0].headers
            assert sent["authorization"] == "Bearer sk-abcdef" and sent["x-team"] == "blue"
            await agent.close()

    asyncio.run(run())


def test_opening_a_remote_agent_opens_no_socket() -> None:
    assert open_agent(AgentSpec(id="A", model="m", base_url="http://nowhere.invalid")).id == "A"


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("LLAMOOT_MODELS", str(tmp_path))
    for name in ("Qwen3-0.6B-Q4_K_M", "Qwen3-0.6B-Q8_0", "tiny", "mmproj-tiny",
                 "big-00001-of-00002", "big-00002-of-00002"):  # fmt: skip
        (tmp_path / f"{name}.gguf").touch()
    return tmp_path


@pytest.mark.parametrize("name", ["tiny", "tiny.gguf", "TINY", "tin"])
def test_model_files_are_found_by_name(folder: pathlib.Path, name: str) -> None:
    assert find_model(name) == folder / "tiny.gguf"
    assert find_model(str(folder / "tiny.gguf")) == folder / "tiny.gguf"


def test_a_name_that_fits_two_files_or_none_is_an_error_that_helps(folder: pathlib.Path) -> None:
    with pytest.raises(UnknownModel, match=r"Q4_K_M.*Q8_0"):
        find_model("qwen3")
    with pytest.raises(UnknownModel, match="did you mean 'tiny'"):
        find_model("tinny")


def quiet() -> dict[str, Any]:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"ports": (probe.getsockname()[1],)}


def test_discovery_finds_environment_ports_and_files(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(request: Received) -> Act:
        key = request.headers.get("authorization", "")
        names = ["gpt", "text-embedding-3"] if key else ["llama", "council/x", "gpt"]
        body = json.dumps({"data": [{"id": name} for name in names]}).encode()
        return Act(body=body, framing="length")

    async def run() -> list[AgentSpec]:
        async with MisbehavingServer(play) as named, MisbehavingServer(play) as local:
            monkeypatch.setenv("OPENAI_BASE_URL", named.url)
            monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
            port = int(local.url.split(":")[2].split("/")[0])
            return await discover((port, *quiet()["ports"]))

    found = asyncio.run(run())
    assert [spec.id for spec in found][:3] == ["gpt", "llama", "gpt#2"]
    assert found[0].api_key_env == "OPENAI_API_KEY" and found[1].api_key_env == ""
    files = [pathlib.Path(spec.model).name for spec in found[3:]]
    assert files == ["Qwen3-0.6B-Q4_K_M.gguf", "Qwen3-0.6B-Q8_0.gguf", "big-00001-of-00002.gguf",
                     "tiny.gguf"]  # fmt: skip


def test_discovery_survives_servers_that_hang_or_talk_nonsense(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("LLAMOOT_MODELS", str(tmp_path))
    monkeypatch.setenv("OLLAMA_HOST", "not a url")

    async def run() -> list[AgentSpec]:
        hang, page = Act(before=60.0), Act(body=b"<html>", content_type="text/html")
        async with MisbehavingServer(hang) as first, MisbehavingServer(page) as second:
            ports = [int(s.url.split(":")[2].split("/")[0]) for s in (first, second)]
            return await asyncio.wait_for(discover(tuple(ports)), 4.0)

    found = asyncio.run(run())
    assert [spec.id for spec in found] == (["abacus"] if BUILT_IN.is_file() else [])


def test_discovery_ends_with_the_built_in_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("LLAMOOT_MODELS", str(tmp_path / "none"))
    model = tmp_path / "abacus.gguf"
    model.touch()
    monkeypatch.setattr(discovery, "BUILT_IN", model)
    assert asyncio.run(discover(**quiet())) == [AgentSpec(id="abacus", model="abacus")]
