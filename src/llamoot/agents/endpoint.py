"""Where an OpenAI-compatible server is: base URL, query, headers, key. No I/O.

A base URL is taken with and without `/v1`, with another version segment, with a full
`…/chat/completions`, with a query, and in Azure's two forms. What is shown of it never holds a
key: user names, passwords and query values other than `api-version` are replaced.
"""

import base64
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from llamoot.errors import ConfigError

_VERSION = re.compile(r"v\d+((alpha|beta)\d*)?", re.IGNORECASE)
_ROUTES = ("/chat/completions", "/completions", "/embeddings", "/models", "/responses")
_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_SAFE_QUERY = {"api-version", "deployment"}
_KEY_SHAPES = (
    re.compile(r"(?i)(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"),
    re.compile(r"\b(sk|gsk|hf|xai|pk|rk|AIza)[-_][A-Za-z0-9*_-]{6,}"),
    re.compile(r"(?i)\b(api[-_]?key|x-api-key|access[-_]?token|authorization|key)"
               r"(\"?\s*[=:]\s*\"?)(?!\*\*\*)[^\s\"'&,;]{6,}"),
    re.compile(r"(?<=://)[^/@\s]+@"),
)  # fmt: skip


class Secret:
    """A key. Its text comes out of `reveal` alone: not of repr, str, format, pickle or copy."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text.strip()

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(("secret", self._text))

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Secret is not written anywhere")


def redact(text: str, secrets: Iterable[Secret] = (), limit: int = 600) -> str:
    """`text` without keys, known or key-shaped, on one line of at most `limit` characters."""
    for secret in secrets:
        if len(secret.reveal()) >= 3:
            text = text.replace(secret.reveal(), "***")
    text = " ".join(text[: 4 * limit].split())
    text = _KEY_SHAPES[0].sub(r"\1 ***", text)
    text = _KEY_SHAPES[1].sub("***", text)
    text = _KEY_SHAPES[2].sub(r"\1\2***", text)
    text = _KEY_SHAPES[3].sub("", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class Origin(NamedTuple):
    """Who is connected to; credentials never leave it."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host.split("%")[0]).is_loopback
        except ValueError:
            return False


def origin_of(url: str, where: str = "base_url") -> Origin:
    """Origin of an absolute http(s) URL. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError("endpoint", where, f"is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = redact(url)
        raise ConfigError("endpoint", where, f"'{shown}' is not an http or https URL")
    host = parts.hostname
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigError("endpoint", where, f"'{redact(host)}' is no host name") from None
    return Origin(parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme])


class Endpoint:
    """A normalised base URL with its credentials. `str()` is safe to show."""

    def __init__(
        self,
        base_url: str,
        *,
        key: Secret | str = "",
        headers: Mapping[str, str | Secret] | None = None,
        model: str = "",
    ) -> None:
        url = base_url.strip()
        if "://" not in url:
            url = ("http://" if _is_local(url) else "https://") + url
        self.origin = origin_of(url)
        parts = urlsplit(url)
        self._query = Secret(parts.query)
        azure = self.origin.host.endswith(_AZURE)
        self.path = _base_path(parts.path, azure, "api-version=" in parts.query, model)
        self.deployment = "/deployments/" in self.path
        self.headers: dict[str, str | Secret] = {}
        key = key if isinstance(key, Secret) else Secret(key)
        if key:
            if azure or self.deployment:
                self.headers["api-key"] = key
            else:
                self.headers["authorization"] = Secret(f"Bearer {key.reveal()}")
        elif parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            encoded = base64.b64encode(pair.encode()).decode()
            self.headers["authorization"] = Secret(f"Basic {encoded}")
            key = Secret(unquote(parts.password or ""))
        for name, value in (headers or {}).items():
            plain = value.reveal() if isinstance(value, Secret) else value
            if not name.isascii() or any(c in name + plain for c in "\r\n\0"):
                raise ConfigError("endpoint", f"headers.{name}", "holds a control character")
            self.headers[name.lower()] = value if isinstance(value, Secret) else Secret(value)
        hidden = [Secret(v) for k, v in parse_qsl(parts.query) if k not in _SAFE_QUERY]
        self.secrets = tuple(
            s for s in (key, *hidden, *self.headers.values()) if isinstance(s, Secret) and s
        )

    def target(self, route: str) -> str:
        """Path and query of `route` ("chat/completions") on the wire."""
        query = f"?{self._query.reveal()}" if self._query else ""
        return f"{self.path}/{route}{query}"

    def shown(self, route: str = "") -> str:
        """The URL as a person may see it."""
        pairs = parse_qsl(self._query.reveal(), keep_blank_values=True)
        safe = [(k, v if k in _SAFE_QUERY else "***") for k, v in pairs]
        query = f"?{urlencode(safe, safe='*')}" if safe else ""
        path = f"{self.path}/{route}" if route else self.path
        return f"{self.origin.scheme}://{self.origin.netloc}{path}{query}"

    def __str__(self) -> str:
        return self.shown()

    def __repr__(self) -> str:
        return f"Endpoint({self.shown()!r})"


def _is_local(url: str) -> bool:
    host = re.split(r"[/?#]", url)[0].rsplit("@", 1)[-1]
    bare = host.removeprefix("[").split("]")[0] if host.startswith("[") else host.split(":")[0]
    if "." not in bare or bare.endswith((".local", ".lan", ".internal", ".localhost")):
        return True
    try:
        return not ipaddress.ip_address(bare).is_global
    except ValueError:
        return False  # a name of the internet: its key must not travel in the open


def _base_path(path: str, azure: bool, classic: bool, model: str) -> str:
    path = re.sub(r"/{2,}", "/", path).rstrip("/")
    exact = False
    for route in _ROUTES:
        if path.endswith(route):
            path, exact = path.removesuffix(route), True
            break
    segments = [s for s in path.split("/") if s]
    if exact or "deployments" in segments or any(_VERSION.fullmatch(s) for s in segments):
        return path
    if azure and classic and model:
        root = path if segments[-1:] == ["openai"] else f"{path}/openai"
        return f"{root}/deployments/{quote(model, safe='')}"
    if azure:
        return f"{path}/v1" if segments[-1:] == ["openai"] else f"{path}/openai/v1"
    return f"{path}/v1"
