"""Imports point strictly down: `files.txt` is the reading order, ALLOWED the walls."""

import ast
import pathlib

import pytest

pytestmark = pytest.mark.pure

PACKAGE = pathlib.Path(__file__).parents[1] / "src" / "llamoot"
LISTED = (pathlib.Path(__file__).parent / "files.txt").read_text().split()
ORDER = [line.removesuffix(".py").replace("/", ".") for line in LISTED]
OPEN_TO_ALL = ("errors", "env")
ALLOWED: dict[str, tuple[str, ...]] = {
    "gguf": (),
    "quant": ("gguf",),
    "text": ("gguf",),
    "kernels": ("gguf", "quant"),
    "model": ("gguf", "quant", "kernels"),
    "engine": ("model", "kernels", "gguf"),
    "agents": ("gguf", "text", "model", "engine"),
    "council": ("agents.types",),
    "server": ("agents", "council", "text", "engine"),
    "api": ("agents", "council"),
    "__main__": ("cli",),
}
# The catalog opens the engine only when a local model is asked for: a council of remote
# agents never pays for it.
DEFERRED = {("agents.catalog", "agents.local")}


def _own(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "write the absolute import"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    return [name.removeprefix("llamoot.") for name in names if name.startswith("llamoot.")]


def _module(name: str) -> str:
    known = [m for m in ORDER if name == m or name.startswith(m + ".")]
    return max(known, key=len, default=name)


def _files() -> list[pathlib.Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def test_every_file_is_listed_once() -> None:
    found = {str(p.relative_to(PACKAGE)) for p in _files()}
    listed = [line for line in LISTED if not line.endswith("__init__.py")]
    assert sorted(listed) == sorted(set(listed)), "a file is listed twice"
    assert found == set(listed)


def test_inner_init_files_are_empty() -> None:
    full = [p for p in PACKAGE.rglob("*/__init__.py") if p.parent != PACKAGE and p.read_text()]
    assert not full, f"{full} must stay empty"


def test_imports_point_down() -> None:
    wrong = []
    for path in _files():
        here = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        folder = here.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _own(node):
                there = _module(name)
                if (here, there) in DEFERRED:
                    continue
                allowed = (*OPEN_TO_ALL, folder, *ALLOWED.get(folder, tuple(ALLOWED)))
                if not any(there == a or there.startswith(a + ".") for a in allowed):
                    wrong.append(f"{here} may not import {there}")
                elif there not in ORDER or ORDER.index(there) >= ORDER.index(here):
                    wrong.append(f"{here} stands above {there} in files.txt")
    assert not wrong, "\n".join(wrong)


def test_no_import_inside_a_function() -> None:
    wrong = []
    for path in _files():
        here = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Import | ast.ImportFrom):
                        names = {_module(name) for name in _own(inner)}
                        if not any((here, name) in DEFERRED for name in names):
                            wrong.append(f"{path}:{inner.lineno}")
    assert not wrong, "\n".join(wrong)
