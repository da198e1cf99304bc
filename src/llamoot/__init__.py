"""llamoot: several language models answer as one.

>>> model = llamoot.load("model.gguf")
>>> model.generate("Once upon a time", max_tokens=40, temperature=0.0)
>>> llamoot.Council.open_sync(members=["model.gguf*3"]).ask_sync("What is 17 + 25?").text

Names are imported when they are first used: a council of remote agents never loads the engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamoot.agents.model import load as load
    from llamoot.api import Council as Council

__version__ = "0.1.0"
__all__ = ["Council", "load"]

_HOMES = {"load": "llamoot.agents.model", "Council": "llamoot.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llamoot' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
