"""Downloads of model files from a hub that speaks Hugging Face's API (`HF_ENDPOINT`).

A file is written beside its place under a name of its own, goes on where a killed download ended,
and gets its name only after its size and SHA-256 are what the hub says. A token is sent to the
hub's own host and to no other.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from llamoot import env
from llamoot.errors import BadRequest, ConfigError, ModelFileError, Transport, UnknownModel

CHUNK = 1 << 20
SECONDS = 30.0
TRIES = 6
# Taken in this order where no quantisation is asked for.
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0", "IQ4_XS", "MXFP4", "BF16", "F16", "F32")
QUANT = re.compile(
    r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|BF16|F16|F32))(?=[-._/]|$)"
)
PART = re.compile(r"-\d{5}-of-\d{5}$")
Progress = Callable[[int, int], None]


class HubFile(NamedTuple):
    """A file of a repository; `sha256` is "" where the hub does not say."""

    name: str
    size: int
    sha256: str = ""


def _host(url: str) -> tuple[str, str]:
    return urlsplit(url).scheme, urlsplit(url).netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Takes the token along to the same host and to no other."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.get_header("Authorization")
        if new is not None and token and _host(newurl) == _host(req.full_url):
            new.add_unredirected_header("Authorization", token)
        return new


_opener = urllib.request.build_opener(_Redirects)


def _open(url: str, start: int = 0) -> Any:
    """The response to a GET from byte `start` on. Raises UnknownModel, Transport, ConfigError."""
    if env.get("LLAMOOT_OFFLINE"):
        raise ConfigError("environment", "LLAMOOT_OFFLINE", "is set, so nothing is downloaded")
    request = urllib.request.Request(url, headers={"User-Agent": "llamoot"})
    token = env.get("HF_TOKEN")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        return _opener.open(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            status = error.code
        if status in (401, 403, 404):
            hint = "" if token else "; a private or gated one needs HF_TOKEN"
            raise UnknownModel(f"{url}: the hub answers {status}{hint}", "model") from None
        again = status == 429 or status >= 500
        what = f"{url}: the hub answers {status}"
        raise Transport("hub", what, http_status=status, retryable=again) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error or type(error).__name__
        raise Transport("hub", f"{url}: {why}", retryable=True) from None


def list_files(repo: str, revision: str = "main") -> list[HubFile]:
    """The model files of a repository, with their sizes and checksums.

    Raises BadRequest for a name that is none, UnknownModel, and Transport.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise BadRequest(f"'{repo}' is not a repository; write owner/name[:quantisation]", "model")
    base = f"{endpoint()}/api/models/{repo}"
    found = _json(f"{base}/revision/{quote(revision, safe='')}?blobs=true")
    rows = found.get("siblings", []) if isinstance(found, dict) else []
    if any("size" not in row for row in rows):
        rows = _json(f"{base}/tree/{quote(revision, safe='')}?recursive=true")
    files = []
    for row in rows if isinstance(rows, list) else []:
        lfs = row.get("lfs") or {}
        name, size = row.get("rfilename") or row.get("path"), lfs.get("size", row.get("size"))
        if isinstance(name, str) and isinstance(size, int) and name.lower().endswith(".gguf"):
            files.append(HubFile(name, size, lfs.get("sha256") or lfs.get("oid") or ""))
    return files


def endpoint() -> str:
    """Where the hub is."""
    text: str = env.get("HF_ENDPOINT")
    if not text.startswith(("http://", "https://")):
        raise ConfigError("environment", "HF_ENDPOINT", f"'{text}' is not an http(s) address")
    return text.rstrip("/")


def _json(url: str) -> Any:
    with _open(url) as response:
        try:
            return json.loads(response.read())
        except (ValueError, OSError, http.client.HTTPException) as error:
            raise Transport("hub", f"{url}: the answer is not JSON: {error}") from None


def quant_of(name: str) -> str:
    """The quantisation a file name tells, in capitals; "" if it tells none."""
    found = QUANT.findall(PART.sub("", name.removesuffix(".gguf")))
    return str(found[-1]).upper() if found else ""


def choose(files: Sequence[HubFile], wanted: str = "") -> list[HubFile]:
    """The file asked for (a quantisation or a file name), with all its parts if it is split.

    BadRequest where there is none or more than one; it names what there is.
    """
    models: dict[str, list[HubFile]] = {}
    for file in files:
        if "mmproj" not in file.name.lower():
            whole = PART.sub("", file.name.removesuffix(".gguf"))
            models.setdefault(whole, []).append(file)
    low = wanted.lower().removesuffix(".gguf")
    kinds = {name: quant_of(name) for name in models}
    if not models:
        raise BadRequest("the repository holds no GGUF file", "model")
    if wanted:
        fits = [name for name in models if low in (name.lower(), name.rpartition("/")[2].lower())]
        fits = fits or [name for name, kind in kinds.items() if kind.lower() == low]
    else:
        ranked = [[n for n, kind in kinds.items() if kind == first] for first in PREFERRED]
        fits = next((names for names in ranked if names), list(models))
    if len(fits) != 1:
        names = ", ".join(sorted(kinds[n] or n for n in (fits or models)))
        what = f"several files fit '{wanted}'" if fits else f"no file fits '{wanted}'"
        raise BadRequest(f"{what}; there are: {names}", "model")
    return sorted(models[fits[0]])


def download(
    repo: str, file: HubFile, folder: Path, progress: Progress, revision: str = "main"
) -> Path:
    """Fetch one file into `folder`; goes on where an earlier try ended. Returns its path.

    Raises Transport when the hub fails for good, ModelFileError where the content is wrong.
    """
    target = folder / file.name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise ModelFileError(file.name, "name", "leads out of the models folder; not downloaded")
    if target.is_file() and target.stat().st_size == file.size:
        progress(file.size, file.size)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{file.sha256[:12] or file.size}.part")
    have = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(target.parent).free
    if file.size - have > free:
        raise ModelFileError(
            target, "disk", f"needs {file.size - have} bytes and {free} are free; make room"
        )
    url = f"{endpoint()}/{repo}/resolve/{quote(revision, safe='')}/{quote(file.name)}"
    for left in range(TRIES - 1, -1, -1):
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, file.size, progress)
            break
        except Transport as error:
            if not left or not error.retryable:
                raise
            time.sleep(min(2.0 ** (TRIES - left), 20.0) / 4 if _size(part) == before else 0.1)
    _verify(part, file)
    os.replace(part, target)
    return target


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, size: int, progress: Progress) -> None:
    """Append what is missing to `part`; Transport where the connection ends before that."""
    start = _size(part)
    if start > size:
        part.unlink()
        start = 0
    if start == size and part.exists():
        return
    with _open(url, start) as response:
        if start and response.status != 206:
            start = 0  # the hub sends everything again
        with open(part, "r+b" if start else "wb") as out:
            out.seek(start)
            out.truncate()
            while start < size:
                try:
                    data = response.read(min(CHUNK, size - start))
                except (OSError, http.client.HTTPException) as error:
                    raise Transport("hub", f"{url}: {error}", retryable=True) from None
                if not data:
                    ended = f"{url}: it ended after {start} of {size} bytes"
                    raise Transport("hub", ended, retryable=True)
                out.write(data)
                start += len(data)
                progress(start, size)


def _verify(part: Path, file: HubFile) -> None:
    """The bytes on the disk, not those that came in, must have the checksum."""
    digest = hashlib.sha256()
    with open(part, "rb") as data:
        while chunk := data.read(CHUNK):
            digest.update(chunk)
        os.fsync(data.fileno())
    if file.sha256 and digest.hexdigest() != file.sha256.lower():
        part.unlink()
        raise ModelFileError(
            file.name, "checksum", "is not the one the hub names; it was removed, pull it again"
        )
