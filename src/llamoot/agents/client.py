"""One server asked over HTTP: attempts, redirects, refusals, and failures as typed errors."""

import asyncio
from typing import Any
from urllib.parse import urljoin, urlsplit

from msgspec import Struct

from llamoot.agents.endpoint import Endpoint, Secret, origin_of, redact
from llamoot.agents.pool import Route, pool
from llamoot.agents.problems import Problem, is_overflow, loads, problem_in
from llamoot.agents.retry import backoff, retry_after, retryable
from llamoot.agents.transport import Connection, Cut, Expired, Refused
from llamoot.agents.wire import encode
from llamoot.errors import AgentError, ConfigError, Stream, Timeout, Transport

_ERROR_BODY = 64 << 10  # bytes of an error body that are read
_ERROR_BODY_S = 5.0  # seconds given to it
_ANSWER_BODY = 256 << 20  # bytes of a JSON answer that is not streamed
# Codes that mean the same at every server, so that a council may act on them.
_CODES = {
    "insufficient_quota": "insufficient_quota",
    "model_not_found": "model_not_found",
    "invalid_api_key": "invalid_api_key",
    "content_filter": "content_filter",
}


class Timers(Struct, frozen=True, kw_only=True):
    """Five limits in seconds. `first_token` covers a long prompt; comments reset `idle` alone."""

    connect: float = 5.0
    write: float = 30.0
    first_token: float = 300.0
    idle: float = 60.0
    total: float = 1800.0


class Client:
    """What agents and embedders of one endpoint share: how to ask it."""

    def __init__(
        self,
        who: str,
        endpoint: Endpoint,
        timers: Timers,
        *,
        retries: int = 2,
        ca_file: str = "",
        proxy: str | None = None,
    ) -> None:
        self.who, self.endpoint, self.timers, self.retries = who, endpoint, timers, retries
        self.route = Route(endpoint.origin, ca_file, proxy)
        self.secrets = (*endpoint.secrets, self.route.proxy_auth)

    async def open(
        self, method: str, route: str, body: bytes, total_at: float, request_id: str = ""
    ) -> Connection:
        """The response to a request, its head read; `release` it. Raises Transport, Timeout."""
        target = self.endpoint.target(route)
        try:
            for _ in range(4):
                head = self._head(method, target, body, request_id)
                connection = await self._exchange(head + body, total_at)
                if connection.status not in (301, 302, 303, 307, 308):
                    return connection
                self.release(connection, False)
                target = self._redirected(connection, target)
        except (OSError, Refused, UnicodeError) as error:  # a host name may be unspeakable
            raise self.failed(error) from None
        raise Transport(self.who, f"{self.endpoint.shown(route)} redirects in a circle")

    async def _exchange(self, data: bytes, total_at: float) -> Connection:
        timers, shared = self.timers, pool()
        shared.users.add(id(self))
        try:
            async with asyncio.timeout_at(total_at):
                connection = await shared.take(self.route, timers.connect)
                if connection.reused:
                    try:
                        return await self._ask(connection, data, total_at)
                    except Cut:
                        # The server closed the socket while it was idle: once more, on a new one.
                        if connection.touched:
                            raise
                    connection = await shared.take(self.route, timers.connect, fresh=True)
                return await self._ask(connection, data, total_at)
        except Expired:
            raise
        except TimeoutError:
            raise Expired("total", timers.total) from None

    async def _ask(self, connection: Connection, data: bytes, total_at: float) -> Connection:
        timers = self.timers
        try:
            await connection.send(data, timers.write)
            connection.limit(timers.first_token, timers.idle, timers.total, total_at)
            await connection.head()
        except BaseException:
            self.release(connection, False)
            raise
        return connection

    def release(self, connection: Connection, finished: bool) -> None:
        """Give a connection back; one that was not read to its end is closed."""
        pool().release(self.route, connection, finished)

    def _head(self, method: str, target: str, body: bytes, request_id: str) -> bytes:
        origin = self.endpoint.origin
        headers = {
            "host": origin.netloc,
            "user-agent": "llamoot",
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",
        }
        if body:
            headers["content-type"] = "application/json"
            headers["content-length"] = str(len(body))
        if request_id.isascii() and request_id.isprintable() and request_id:
            headers["x-request-id"] = request_id
        if self.route.forwards:
            target = f"http://{origin.netloc}{target}"
            if self.route.proxy_auth:
                headers["proxy-authorization"] = self.route.proxy_auth.reveal()
        for name, value in self.endpoint.headers.items():
            headers[name] = value.reveal() if isinstance(value, Secret) else value
        lines = [f"{method} {target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")

    def _redirected(self, connection: Connection, target: str) -> str:
        """The new target, where a redirect keeps method, body and server; else an error."""
        origin = self.endpoint.origin
        here = f"{origin.scheme}://{origin.netloc}{target}"
        there = urljoin(here, connection.headers.get("location", ""))
        shown = redact(urlsplit(there)._replace(query="", fragment="").geturl(), self.secrets)
        try:
            same = origin_of(there) == origin
        except ConfigError:
            same = False
        if not same or connection.status not in (307, 308):
            raise Refused(
                f"{self.endpoint.shown()} redirects with status {connection.status} to {shown}, "
                "which is not followed; set that address as the base URL if you trust it"
            )
        parts = urlsplit(there)
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def failed(self, error: Exception, partial: str = "", *, answered: bool = False) -> AgentError:
        """A failure below HTTP as the error of the contract; `answered`: after the head."""
        where = self.endpoint.shown()
        if isinstance(error, Expired):
            found = Timeout(self.who, error.timer, error.seconds, partial=partial)
            found.retryable = error.timer == "connect"
            return found
        shown = redact(str(error) or type(error).__name__, self.secrets)
        kind = Stream if answered else Transport
        if isinstance(error, Cut):
            return kind(self.who, f"{where}: {shown}", partial=partial, retryable=not partial)
        if isinstance(error, Refused):
            return kind(self.who, shown, partial=partial)
        lasting = isinstance(error, ValueError) or "certificate" in shown.lower()
        return Transport(
            self.who, f"cannot reach {where}: {shown}", partial=partial, retryable=not lasting
        )

    async def body(self, connection: Connection, limit: int) -> bytes:
        """The body, at most `limit` bytes of it. Raises Cut, Expired, Refused."""
        pieces, size = [], 0
        while size < limit and (data := await connection.read()):
            connection.started()
            pieces.append(data)
            size += len(data)
        return b"".join(pieces)[:limit]

    async def problem(self, connection: Connection) -> Problem:
        """What an error response says; bounded in size and in time. Releases the connection."""
        found = b""
        try:
            async with asyncio.timeout(_ERROR_BODY_S):
                found = await self.body(connection, _ERROR_BODY)
        except (OSError, Refused):  # also the timers: TimeoutError is an OSError
            pass
        finally:
            self.release(connection, False)
        return problem_in(found)

    def refused(self, connection: Connection, problem: Problem) -> Transport:
        """An error status as the error of the contract."""
        status, headers = connection.status, connection.headers
        told = redact(problem.message, self.secrets)
        code = problem.code or problem.type
        error = Transport(
            self.who,
            f"{self.endpoint.shown()} answered {status}: {told}",
            http_status=status,
            body=told,
            retryable=retryable(status, headers, code),
            retry_after=retry_after(headers),
        )
        if is_overflow(problem):
            error.code, error.retryable = "context_length_exceeded", False
        elif code in _CODES:
            error.code = _CODES[code]
        return error

    def attempts(self) -> "Attempts":
        """The repeats of one call."""
        return Attempts(self)

    async def ask(self, method: str, route: str, body: Any = None) -> Any:
        """A JSON answer that is not streamed, repeated where that helps. Raises AgentError."""
        attempts = self.attempts()
        data = encode(body) if body is not None else b""
        while True:
            try:
                return await self._ask_once(method, route, data, attempts.total_at)
            except AgentError as error:
                if not await attempts.again(error):
                    raise

    async def _ask_once(self, method: str, route: str, data: bytes, total_at: float) -> Any:
        connection = await self.open(method, route, data, total_at)
        if connection.status >= 300:
            raise self.refused(connection, await self.problem(connection))
        finished = False
        try:
            found = await self.body(connection, _ANSWER_BODY)
            finished = True
            return loads(found)
        except (OSError, Refused) as error:
            raise self.failed(error, answered=True) from None
        except ValueError:
            problem = redact(problem_in(found).message, self.secrets, 200)
            raise Stream(
                self.who, f"{self.endpoint.shown(route)} sent no JSON: {problem}"
            ) from None
        finally:
            self.release(connection, finished)

    def close(self) -> None:
        """The endpoint is asked no more."""
        pool().leave(id(self))


class Attempts:
    """How often and until when one call is repeated."""

    def __init__(self, client: Client) -> None:
        now = asyncio.get_running_loop().time()
        self.total_at = now + client.timers.total
        self._loading_until = now + client.timers.first_token
        self._left, self._done = client.retries, 0

    async def again(self, error: AgentError) -> bool:
        """Wait and say yes, where asking again may help and the time allows it."""
        now = asyncio.get_running_loop().time()
        asked = error.retry_after if isinstance(error, Transport) else None
        loading = isinstance(error, Transport) and "loading model" in error.body.lower()
        if not error.retryable or (self._left <= 0 and not (loading and now < self._loading_until)):
            return False
        wait = min(1.0, backoff(0) or 1.0) if loading else backoff(self._done, asked)
        if wait is None or now + wait >= self.total_at:
            return False
        if not loading:
            self._left -= 1
            self._done += 1
        await asyncio.sleep(wait)
        return True
