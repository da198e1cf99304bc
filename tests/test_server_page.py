"""The live page in a real headless browser: watched, stopped, reloaded, linked, read on a phone."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamoot.agents.scripted import Reply, ScriptedAgent
from llamoot.agents.types import AgentSpec, ChatRequest
from llamoot.council.agent import CouncilAgent
from llamoot.council.config import parse
from llamoot.council.council import Council
from llamoot.council.panel import panel
from llamoot.council.store import Store
from llamoot.server.registry import Entry, Registry
from llamoot.server.state import State
from serving import call, serving

pytestmark = pytest.mark.peer
browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

CONFIG = """
[councils.three]
members = [{ model = "red", script = ["x"] }, { model = "green", script = ["x"] },
           { model = "blue", script = ["x"] }]
protocol = "debate"
max_rounds = 2
threshold = 1.0
freeze = false
"""
SAID = {
    "red": ["The sum of 27 and 48 is 75.\n75", "I still say so.\n75"],
    "green": ["I believe it is 65, for I forgot to carry.\n65", "The others carried; so do I.\n75"],
    "blue": ["Seven and eight is fifteen, so the answer is\n75", "Yes.\n75"],
}


def _council(store: Store, delay: float) -> Council:
    def open_agent(spec: AgentSpec) -> ScriptedAgent:
        first, then = (Reply(text=text, delay=delay) for text in SAID[spec.model])

        def play(request: ChatRequest) -> Reply:
            return then if "Check all entries" in request.messages[-1].content else first

        return ScriptedAgent(spec.id, play, model=spec.model)

    return Council(panel(parse(CONFIG, "test")), open_agent, store=store)


@pytest.fixture(params=[0.02])
def port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    # The store is used by the server's thread only; SQLite wants it opened there.
    made: dict[str, Any] = {}

    def open_council() -> CouncilAgent:
        return made["agent"]

    state = State(Registry([]))

    async def prepare() -> CouncilAgent:
        if "agent" not in made:
            state.store = Store(tmp_path / "runs.sqlite")
            council = _council(state.store, request.param)
            made["agent"] = CouncilAgent(council)
            state.registry.entries["council/three"].details["council"] = council
        return open_council()

    state.registry.entries["council/three"] = Entry("council/three", "council", prepare)
    solo = ScriptedAgent("solo", Reply(text="Just me.", delay=0.01))
    state.registry.entries["solo"] = Entry("solo", "remote", lambda: solo)
    with serving(state) as number:
        # Open the council (and with it the store) before the first page asks for past runs.
        call(number, "/v1/council/completions", {"prompt": "What is 1 + 1?"})
        yield number


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with browsers.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, port: int) -> Iterator[Any]:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((f"http://127.0.0.1:{port}/", "blob:", "data:"))
            else complaints.append(f"asked {r.url}")
        ),
    )
    yield page
    page.close()
    assert not complaints, complaints


def _ask(page: Any, port: int, model: str = "council/three") -> None:
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector(f"option[value='{model}']", state="attached")
    page.select_option("#model", model)
    page.fill("#question", "What is 27 + 48?")
    page.click("#send")


def test_a_run_is_watched_live_to_its_end(tab: Any, port: int) -> None:
    _ask(tab, port)
    tab.wait_for_selector(".lane.live")
    tab.wait_for_selector("section[aria-label=Answer] .answer:has-text('75')", timeout=15_000)
    tab.wait_for_selector("#status:has-text('Done')")
    assert tab.locator(".lanes").count() == 2 and tab.locator(".lane").count() == 6
    assert tab.locator("section[aria-label=Votes] li").count() >= 1
    assert tab.locator("section[aria-label=Agreement] table").count() == 2
    assert "B: 65 → 75" in tab.inner_text("section[aria-label=Votes]")
    assert "/runs/" in tab.url


def test_a_reload_in_the_middle_continues_from_the_events(tab: Any, port: int) -> None:
    _ask(tab, port)
    tab.wait_for_url("**/runs/*")
    tab.reload()
    tab.wait_for_selector("section[aria-label=Answer] .answer:has-text('75')", timeout=15_000)
    tab.wait_for_selector("#status:has-text('Done')")
    assert tab.locator(".lane").count() == 6


@pytest.mark.parametrize("port", [0.3], indirect=True)
def test_the_stop_button_ends_the_run(tab: Any, port: int) -> None:
    _ask(tab, port)
    tab.wait_for_url("**/runs/*")
    tab.click("#stop")
    tab.wait_for_selector(".failure:has-text('cancelled')", timeout=10_000)
    assert tab.is_hidden("#stop")


def test_a_past_run_opens_by_its_link_and_is_found_by_its_words(tab: Any, port: int) -> None:
    run = call(port, "/v1/council/completions", {"prompt": "What is 27 + 48?"})[2]["run"]
    tab.goto(f"http://127.0.0.1:{port}/runs/{run}")
    tab.wait_for_selector("section[aria-label=Answer] .answer:has-text('75')")
    tab.fill("#search", "27 + 48")
    tab.wait_for_selector("#runs li:only-child")
    tab.fill("#search", "no such words")
    tab.wait_for_selector("#none:not([hidden])")


def test_a_single_model_answers_too(tab: Any, port: int) -> None:
    _ask(tab, port, "solo")
    tab.wait_for_selector("section[aria-label=Answer] .answer:has-text('Just me.')")


def test_a_phone_shows_it_all_without_sideways_scrolling(browser: Any, port: int) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
    _ask(page, port)
    page.wait_for_selector("section[aria-label=Timeline]", timeout=15_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert dark == "rgb(20, 24, 22)"
    page.close()


def test_the_keyboard_is_enough(tab: Any, port: int) -> None:
    tab.goto(f"http://127.0.0.1:{port}/")
    tab.wait_for_selector("option", state="attached")
    tab.focus("#question")
    tab.keyboard.type("What is 27 + 48?")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("section[aria-label=Answer] .answer", timeout=15_000)
    time.sleep(0.1)
