"""The line budget. Raising a number here is a change of its own, with a reason."""

import ast
import pathlib

import pytest

pytestmark = pytest.mark.pure

PACKAGE = pathlib.Path(__file__).parents[1] / "src" / "llamoot"
# 12,000 was guessed before anything was written. What stands is 35 tensor types with 16 packed
# layouts and their twins (8,500), 115 architectures (3,000), five HTTP APIs (3,100), a client
# that survives every odd server (4,200): files and functions stayed small, there are more of them.
PACKAGE_LINES, FILE_LINES, FUNCTION_LINES, LINE_CHARACTERS = 31_500, 400, 60, 100


def test_files_functions_and_lines_stay_small() -> None:
    over, total = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        lines = text.splitlines()
        total += len(lines)
        if len(lines) > FILE_LINES:
            over.append(f"{path}: {len(lines)} lines")
        over += [
            f"{path}:{i}: {len(s)} wide" for i, s in enumerate(lines, 1) if len(s) > LINE_CHARACTERS
        ]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    over.append(f"{path}:{node.lineno}: {node.name} has {length} lines")
    assert not over, "\n".join(over)
    assert total <= PACKAGE_LINES, f"{total} lines"
