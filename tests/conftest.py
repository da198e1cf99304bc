"""What tests share: the folder of reference files, where it exists, and a private home."""

import pathlib
import signal

import pytest

# A shell that starts the tests in the background leaves SIGINT ignored, and every child would
# inherit that: what Ctrl-C does could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Reference files beside the checkout; a clone elsewhere does not have them."""
    if not SHARED.is_dir():
        pytest.skip("reference files are not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's configuration or writes runs into the user's folders."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("LLAMOOT_DATA", str(home / "data"))
    # Start-up is measured as users have it: with its bytecode kept.
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OLLAMA_HOST", "LLAMOOT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
