"""What tests share: the folder of reference files, where it exists, and a private home."""

import pathlib

import pytest

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
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OLLAMA_HOST", "LLAMOOT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
