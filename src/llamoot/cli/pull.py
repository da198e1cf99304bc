"""`llamoot pull REPO[:QUANT]`: download a model file, or go on with a download."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
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
from llamoot.errors import BadRequest


def pull(
    source: Annotated[str, typer.Argument(metavar="REPO[:QUANT]", help="owner/name:Q4_K_M")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="do not ask")] = False,
    only_list: Annotated[bool, typer.Option("--list", help="show what there is")] = False,
    into: Annotated[Path | None, typer.Option(help="folder instead of the models folder")] = None,
    revision: Annotated[str, typer.Option(help="branch, tag or commit")] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="print the result as JSON")] = False,
) -> None:
    """Download a model file. A download that was stopped goes on where it ended."""
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
        typer.confirm("download?", abort=True, err=True)
    paths = _all(repo, chosen, folder, revision, total)
    first = paths[0]
    result = {"path": str(first), "files": [str(path) for path in paths], "bytes": total}
    typer.echo(json.dumps(result) if as_json else str(first))


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
        typer.echo(json.dumps(rows))
        return
    for file in files:
        typer.echo(f"{amount(file.size):>10}  {quant_of(file.name):8}  {file.name}")
