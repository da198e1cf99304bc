"""Every environment variable that llamoot reads, with its type, default and one sentence.

Nothing else in the package touches `os.environ`; `docs/` prints its table from VARIABLES.
Values are read when asked for, so a test may change them with `monkeypatch.setenv`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamoot.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Variable:
    """One row of the table: how to read it, what it is without being set, what it does."""

    name: str
    read: Callable[[str], Any]
    default: Any
    sentence: str


def _flag(text: str) -> bool:
    return text.strip().lower() not in ("", "0", "no", "false", "off")


VARIABLES = {
    row.name: row
    for row in (
        Variable("LLAMOOT_CACHE", Path, None, "folder of compiled kernels and caches"),
        Variable("LLAMOOT_CONFIG", Path, None, "configuration file to use instead of searching"),
        Variable("LLAMOOT_MODELS", Path, None, "folder in which model files are looked for"),
        Variable("LLAMOOT_DATA", Path, None, "folder of recorded runs"),
        Variable("LLAMOOT_THREADS", int, 0, "threads of the engine; 0 means one per physical core"),
        Variable("LLAMOOT_CPU", str, "", "CPU name to compile for; empty means this machine's"),
        Variable("LLAMOOT_CPU_FEATURES", str, "", "CPU features such as -avx512f,+avx2"),
        Variable("LLAMOOT_KERNELS", str, "compiled", "compiled, or twins for the slow exact ones"),
        Variable("LLAMOOT_DEBUG", _flag, False, "show tracebacks instead of one-line errors"),
        Variable("LLAMOOT_OFFLINE", _flag, False, "never open a connection to another machine"),
        Variable("LLAMOOT_API_KEY", str, "", "key that `serve` asks of its clients"),
        Variable("OPENAI_BASE_URL", str, "", "an OpenAI-compatible endpoint for discovery"),
        Variable("OPENAI_API_KEY", str, "", "the key of that endpoint"),
        Variable("OLLAMA_HOST", str, "", "address of an Ollama server for discovery"),
        Variable("HF_ENDPOINT", str, "https://huggingface.co", "hub that `pull` downloads from"),
        Variable("HF_TOKEN", str, "", "token for that hub"),
        Variable("HTTPS_PROXY", str, "", "proxy for https endpoints, never for this machine"),
        Variable("HTTP_PROXY", str, "", "proxy for http endpoints, never for this machine"),
        Variable("ALL_PROXY", str, "", "proxy where neither of the two is set"),
        Variable("NO_PROXY", str, "", "hosts reached without a proxy, separated by commas"),
        Variable("XDG_CACHE_HOME", Path, None, "base of the cache folder"),
        Variable("XDG_CONFIG_HOME", Path, None, "base of the configuration folder"),
        Variable("XDG_DATA_HOME", Path, None, "base of the data folder"),
    )
}


def get(name: str) -> Any:
    """Value of the variable `name`, typed; its default where it is unset or empty."""
    row = VARIABLES[name]
    text = os.environ.get(name, "")
    if not text:
        return row.default
    try:
        return row.read(text)
    except ValueError as error:
        raise ConfigError("environment", name, f"cannot read {text!r}: {error}") from None


def secret(name: str) -> str:
    """A key named by the configuration (`api_key_env`), which may be any variable; '' if unset."""
    return os.environ.get(name, "")


def _folder(own: str, base: str, fallback: str) -> Path:
    chosen: Path | None = get(own)
    return chosen or (get(base) or Path.home() / fallback) / "llamoot"


def cache_folder() -> Path:
    """Where compiled kernels and tokenizer caches are kept."""
    return _folder("LLAMOOT_CACHE", "XDG_CACHE_HOME", ".cache")


def config_folder() -> Path:
    """Where the user's llamoot.toml is looked for after the working directory."""
    base: Path = get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return base / "llamoot"


def data_folder() -> Path:
    """Where recorded runs are kept."""
    return _folder("LLAMOOT_DATA", "XDG_DATA_HOME", ".local/share")


def models_folder() -> Path:
    """Where `pull` puts models and bare model names are looked for."""
    chosen: Path | None = get("LLAMOOT_MODELS")
    return chosen or data_folder() / "models"
