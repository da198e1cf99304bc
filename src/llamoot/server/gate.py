"""Who may come in: hosts, origins, keys, sizes and times. An ASGI middleware around the routes.

A browser page anywhere can send requests to a loopback server, so the Host header must name an
allowed host (DNS rebinding) and an Origin must be on the list. Keys are compared in constant
time and never logged.
"""

import asyncio
import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamoot.errors import ConfigError, LlamootError, Overloaded
from llamoot.server.errors import Refused, error_response

OPEN_PATHS = ("/health", "/v1/health", "/favicon.ico")
ALLOWED_HEADERS = (
    "authorization, content-type, x-api-key, api-key, idempotency-key, openai-beta, "
    "openai-organization, openai-project, anthropic-version, anthropic-beta, "
    "anthropic-dangerous-direct-browser-access, x-stainless-arch, x-stainless-lang, "
    "x-stainless-os, x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, "
    "x-stainless-runtime-version, x-stainless-timeout, x-stainless-async, "
    "x-stainless-helper-method, x-request-id, last-event-id"
)


@dataclass(frozen=True)
class Limits:
    """What one server lets in. Seconds and bytes."""

    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()  # besides loopback names and the bound address
    origins: tuple[str, ...] = ()  # besides the server's own pages
    max_body: int = 16 << 20
    body_seconds: float = 30.0
    max_requests: int = 256


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys from a file, one a line; blank lines and `#` comments are skipped."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "api-key-file", f"cannot be read: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(path, "api-key-file", "holds no key; write one key a line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether the name or address can only mean this machine."""
    if host in ("localhost", "testserver") or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _host_of(header: str) -> str:
    """The host of a Host header without its port; "" if it makes no sense."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Gate:
    """Checks before the application, CORS headers after it."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.running = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        cors = self._cors(headers, origin)
        response: Response | None = None
        try:
            self._check(scope, headers, origin, cors)
            if scope["method"] == "OPTIONS":
                response = Response(status_code=204)
        except LlamootError as error:
            response = error_response(error, scope["path"])
        if response is not None:
            await response(scope, receive, self._with(send, cors))
            return
        self.running += 1
        try:
            await self.app(scope, self._bounded(receive), self._with(send, cors))
        finally:
            self.running -= 1

    def _check(self, scope: Scope, headers: Headers, origin: str, cors: dict[str, str]) -> None:
        host = _host_of(headers.get("host", ""))
        if not is_loopback(host) and host not in self.limits.hosts and "*" not in self.limits.hosts:
            message = f"the Host '{host}' is not served here; start with --allow-host {host}"
            raise Refused(403, "host_not_allowed", message)
        if origin and not cors:
            message = f"the origin '{origin}' may not call this server; see --allow-origin"
            raise Refused(403, "origin_not_allowed", message)
        if scope["method"] == "OPTIONS" or scope["path"] in OPEN_PATHS:
            return
        self._check_key(scope, headers)
        if int(headers.get("content-length") or 0) > self.limits.max_body:
            raise self._too_large()
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "unsupported_encoding", "send the body without Content-Encoding")
        if self.running >= self.limits.max_requests and scope["method"] == "POST":
            raise Overloaded(f"{self.running} requests are running; try again in a moment")

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        page = scope["method"] in ("GET", "HEAD") and not scope["path"].startswith(
            ("/v1", "/metrics", "/models", "/runs")
        )
        if not self.limits.keys or page:
            return
        given = headers.get("authorization", "")
        given = given[7:] if given[:7].lower() == "bearer " else headers.get("x-api-key", "")
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self.limits.keys]
        if not any(matches):
            message = "the API key is missing or not valid; send it as 'Authorization: Bearer KEY'"
            headers_out = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, "invalid_api_key", message, headers_out)

    def _too_large(self) -> Refused:
        message = f"the body is larger than {self.limits.max_body} bytes"
        return Refused(413, "request_too_large", message, {"Connection": "close"})

    def _cors(self, headers: Headers, origin: str) -> dict[str, str]:
        own = origin.split("://")[-1] == headers.get("host", "")
        if not origin or not (own or origin in self.limits.origins):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Expose-Headers": "x-request-id, retry-after",
            "Access-Control-Max-Age": "600",
            "Vary": "Origin",
        }

    def _with(self, send: Send, cors: dict[str, str]) -> Send:
        extra = [(k.lower().encode(), v.encode()) for k, v in cors.items()]
        extra.append((b"x-content-type-options", b"nosniff"))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        return sending

    def _bounded(self, receive: Receive) -> Receive:
        """Receive with the body's size and total time limited."""
        seen, deadline = 0, asyncio.get_running_loop().time() + self.limits.body_seconds
        complete = False

        async def receiving() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                seconds = self.limits.body_seconds
                message_text = f"the body did not arrive within {seconds:g} s"
                close = {"Connection": "close"}
                raise Refused(408, "request_timeout", message_text, close) from None
            seen += len(message.get("body", b""))
            if seen > self.limits.max_body:
                raise self._too_large()
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return receiving
