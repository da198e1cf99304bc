"""`llamoot quantize IN OUT TYPE`: write a model file with smaller tensor types."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llamoot import env
from llamoot.cli.options import Argument, Option
from llamoot.gguf.reader import open_gguf
from llamoot.gguf.types import TensorType
from llamoot.quant.convert import convert, file_type, plan


def quantize(
    source: Annotated[Path, Argument(metavar="IN", help="model file to read")],
    target: Annotated[Path, Argument(metavar="OUT", help="model file to write")],
    kind: Annotated[str, Argument(metavar="TYPE", help="Q4_K_M, Q8_0, F16, …")],
    threads: Annotated[int, Option(help="threads; 0 means all of this process")] = 0,
    as_json: Annotated[bool, Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Write a model file again with smaller tensor types, chosen as llama.cpp does."""
    chosen = file_type(kind)
    with open_gguf(source) as gguf:
        types = plan(gguf, chosen)
        total = sum(types[t.name].nbytes(t.shape) for t in gguf.tensors.values())
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)

        def progress(name: str, kind: TensorType, n: int) -> None:
            bar.update(task, advance=n, description=f"{name} {kind.name}")

        done = convert(source, target, chosen, threads or _cores(), progress)
    if done["requantised"]:
        console.print(
            f"note: {done['requantised']} tensors were quantised before; a file made from the "
            "original in F16 or BF16 is more accurate",
            soft_wrap=True,
        )
    print(json.dumps(done) if as_json else _sentence(done))


def _cores() -> int:
    wanted: int = env.get("LLAMOOT_THREADS")
    if wanted:
        return wanted
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _sentence(done: dict[str, Any]) -> str:
    types = ", ".join(f"{n} {name}" for name, n in done["tensors"].items())
    before, after = done["bytes_before"] / 1e6, done["bytes"] / 1e6
    return f"{done['path']}: {done['file_type']}, {before:.1f} MB -> {after:.1f} MB ({types})"
