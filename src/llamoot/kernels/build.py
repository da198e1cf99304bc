"""Compile kernel modules with numba into object code: `python -m llamoot.kernels.build`.

It runs in a process of its own, started by `library.py`, so that the process which runs the model
never imports numba. Each module becomes one file: a line of JSON that names its operations and
their parameters, then the object code. Files are written aside and renamed, so that two builds at
once do no harm and a killed one leaves nothing half-written.
"""

import argparse
import hashlib
import importlib
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba.core import config
from numba.core.registry import cpu_target

from llamoot.errors import ConfigError
from llamoot.kernels.op import GIVEN, OWN, PER_ROW, ROWS, WORK, Op
from llamoot.kernels.target import current


def _load(word: int, name: str) -> str:
    return (
        f"  %p{word} = getelementptr i64, ptr %words, i64 {word}\n"
        f"  %{name} = load i64, ptr %p{word}\n"
    )


def entry(symbol: str, target: str, kinds: tuple[type, ...]) -> str:
    """LLVM text of the entry function that unpacks the words and calls the numba function."""
    body = "  %words = inttoptr i64 %address to ptr\n  %ret = alloca ptr\n  %exc = alloca ptr\n"
    body += _load(WORK, "work") + _load(ROWS, "rows.address") + _load(PER_ROW, "per_row")
    body += "  %rows.at = inttoptr i64 %rows.address to ptr\n  %live = load i64, ptr %rows.at\n"
    body += "  %rows = mul i64 %live, %per_row\n"
    passed = ["ptr %ret", "ptr %exc", "i64 %work", "i64 %rows", "i64 %thread", "i64 %threads"]
    for i, kind in enumerate(kinds, OWN):
        body += _load(i, f"w{i}")
        if kind is float:
            body += f"  %d{i} = bitcast i64 %w{i} to double\n"
            body += f"  %f{i} = fptrunc double %d{i} to float\n"
        passed.append(f"float %f{i}" if kind is float else f"i64 %w{i}")
    types = [
        "ptr",
        "ptr",
        *["i64"] * len(GIVEN),
        *("float" if k is float else "i64" for k in kinds),
    ]
    return (
        f'declare i32 @"{target}"({", ".join(types)})\n'
        f"define void @{symbol}(i64 %address, i64 %thread, i64 %threads) {{\n{body}"
        f'  %status = call i32 @"{target}"({", ".join(passed)})\n  ret void\n}}\n'
    )


def compile_module(name: str) -> tuple[dict[str, Any], bytes]:
    """Operations of `kernels/<name>.py`: their parameters, and one object with their code."""
    module = importlib.import_module(f"llamoot.kernels.{name}")
    ops = [op for op in vars(module).values() if isinstance(op, Op) and op.module == name]
    codegen = cpu_target.target_context.codegen()
    whole, described = llvm.parse_assembly(f'target triple = "{codegen._tm.triple}"'), {}
    entries = ""
    for op in ops:
        overload = op.compile()
        code = overload.library._final_module.as_bitcode()
        whole.link_in(llvm.parse_bitcode(code))
        symbol = f"llamoot_{name}_{op.name}"
        entries += entry(symbol, overload.fndesc.llvm_func_name, op.types)
        kinds = ["int" if kind is int else "float" for kind in op.types]
        described[op.name] = {"symbol": symbol, "parameters": op.parameters, "types": kinds}
    whole.link_in(llvm.parse_assembly(entries))
    # Helpers of two modules may have one name: kept inside, they cannot be mistaken.
    open_names = {about["symbol"] for about in described.values()}
    for function in whole.functions:
        if not function.is_declaration and function.name not in open_names:
            function.linkage = llvm.Linkage.internal
    return described, bytes(codegen._tm.emit_object(whole))


def write(path: Path, described: dict[str, Any], code: bytes) -> None:
    """One file, complete or not there at all."""
    digest = hashlib.sha256(code).hexdigest()
    header = json.dumps({"ops": described, "sha256": digest}).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "wb") as file:
        file.write(header + b"\n" + code)
    Path(name).replace(path)


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, however that came about."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def main() -> None:
    """Arguments: the target its starter means, then pairs of a module and the file to write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("pairs", nargs="+", help="module=file")
    args = parser.parse_args()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    target = current()
    if target.key != args.target:
        raise ConfigError("environment", "LLAMOOT_CPU", "it changed while this process ran")
    config.CPU_NAME, config.CPU_FEATURES = target.cpu, target.flags
    for pair in args.pairs:
        name, _, path = pair.partition("=")
        write(Path(path), *compile_module(name))


if __name__ == "__main__":
    main()
