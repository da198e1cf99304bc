"""`llamoot pull REPO[:QUANT]`: download a model file, or go on with a download."""

import json
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from llamoot import env
from llamoot.agents.hub import HubFile, choose, download, endpoint, list_files, quant_of
from llamoot.cli.options import Argument, Option
from llamoot.errors import BadRequest

RECOMMENDED = (  # source, bytes (the hub says them exactly before a download), what for
    ("Qwen/Qwen3-0.6B-GGUF:Q8_0", 639_000_000, "the smallest that talks sensibly; any machine"),
    ("Qwen/Qwen3-1.7B-GGUF:Q8_0", 1_830_000_000, "a good council on a laptop"),
    ("Qwen/Qwen3-4B-GGUF:Q4_K_M", 2_500_000_000, "the best of these; 4 GB of memory"),
)


def pull(
    source: Annotated[
        str, Argument(metavar="REPO[:QUANT]", help="owner/name:Q4_K_M; none: what to begin with")
    ] = "",
    yes: Annotated[bool, Option("-y", "--yes", help="do not ask")] = False,
    only_list: Annotated[bool, Option("--list", help="show what there is")] = False,
    into: Annotated[Path | None, Option(help="folder instead of the models folder")] = None,
    revision: Annotated[str, Option(help="branch, tag or commit")] = "main",
    as_json: Annotated[bool, Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Download a model file. A download that was stopped goes on where it ended.

    The size is shown first; without a repository, small models to begin with are listed."""
    if not source:
        _recommend(as_json)
        return
    source = source.removeprefix(endpoint()).removeprefix("hf.co/").strip("/")
    repo, _, wanted = source.partition(":")
    files = list_files(repo, revision)
    if only_list:
        _show(files, as_json)
        return
    chosen = choose(files, wanted)
    folder = (into or env.models_folder()) / repo
    total = sum(file.size for file in chosen)
    names = chosen[0].name + (f" and {len(chosen) - 1} parts" if len(chosen) > 1 else "")
    print(f"{names}: {amount(total)} into {folder}", file=sys.stderr)
    if not yes:
        if not sys.stdin.isatty():
            raise BadRequest("nobody can be asked here; add --yes to download", "yes")
        print("download? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise KeyboardInterrupt
    paths = _all(repo, chosen, folder, revision, total)
    first = paths[0]
    result = {"path": str(first), "files": [str(path) for path in paths], "bytes": total}
    print(json.dumps(result) if as_json else str(first))


def _recommend(as_json: bool) -> None:
    """Small models to begin with."""
    if as_json:
        names = ("source", "bytes", "what")
        print(json.dumps([dict(zip(names, row)) for row in RECOMMENDED]))
        return
    for source, size, what in RECOMMENDED:
        print(f"llamoot pull {source:28} {amount(size):>8}  {what}")


def _all(repo: str, chosen: list[HubFile], folder: Path, revision: str, total: int) -> list[Path]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    paths: list[Path] = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, before = bar.add_task("", total=total), 0
        for file in chosen:
            bar.update(task, description=file.name.rpartition("/")[2])
            offset = before

            def progress(done: int, _: int, offset: int = offset) -> None:
                bar.update(task, completed=offset + done)

            paths.append(download(repo, file, folder, progress, revision))
            before += file.size
    return paths


def amount(n: int) -> str:
    """1234567 as 1.2 MB."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _show(files: list[HubFile], as_json: bool) -> None:
    rows = [{"file": f.name, "quant": quant_of(f.name), "bytes": f.size} for f in files]
    if as_json:
        print(json.dumps(rows))
        return
    for file in files:
        print(f"{amount(file.size):>10}  {quant_of(file.name):8}  {file.name}")
