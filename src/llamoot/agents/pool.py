"""Connections shared by all agents of an event loop: reuse, proxies, TLS, a cap per server."""

import asyncio
import base64
import ssl
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llamoot import env
from llamoot.agents.endpoint import Origin, Secret, origin_of
from llamoot.agents.transport import Connection, Cut, Expired, Refused
from llamoot.errors import ConfigError

IDLE_S = 4.0  # servers built on cpp-httplib close after 5 s; a pooled socket must be younger
LINGER_S = 1.0  # how long the end of a body may take to come after its last event
MOST = 256  # connections to one server; further requests wait for a free one


class Route:
    """How a server is reached: directly, or through a proxy, trusting which authorities."""

    __slots__ = ("ca_file", "origin", "proxy", "proxy_auth")

    def __init__(self, origin: Origin, ca_file: str = "", proxy: str | None = None) -> None:
        if ca_file and not Path(ca_file).is_file():
            raise ConfigError("endpoint", "ca_file", f"there is no file '{ca_file}'")
        self.origin, self.ca_file = origin, ca_file
        url = _proxy_for(origin) if proxy is None else proxy
        self.proxy: Origin | None = None
        self.proxy_auth = Secret()
        if url:
            url = url if "://" in url else f"http://{url}"
            self.proxy = origin_of(url, "proxy")
            parts = urlsplit(url)
            if parts.username is not None:
                pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                self.proxy_auth = Secret("Basic " + base64.b64encode(pair.encode()).decode())

    @property
    def key(self) -> tuple[object, ...]:
        return (self.origin, self.ca_file, self.proxy, self.proxy_auth)

    @property
    def forwards(self) -> bool:
        """Requests go to the proxy in absolute form, without a tunnel."""
        return self.proxy is not None and self.origin.scheme == "http"


def _variable(name: str) -> str:
    return env.secret(name.lower()) or env.secret(name)


def _proxy_for(origin: Origin) -> str:
    """The proxy that the environment names for `origin`; never one for this machine itself."""
    if origin.loopback:
        return ""
    for row in _variable("NO_PROXY").split(","):
        name = row.strip().lower().removeprefix("*").lstrip(".")
        name = name.removesuffix(f":{origin.port}")
        if row.strip() == "*" or (
            name and (origin.host == name or origin.host.endswith(f".{name}"))
        ):
            return ""
    return _variable(f"{origin.scheme.upper()}_PROXY") or _variable("ALL_PROXY")


class Pool:
    """Idle connections by route, and how many are open to each server."""

    def __init__(self) -> None:
        self._idle: dict[tuple[object, ...], list[tuple[Connection, asyncio.TimerHandle]]] = {}
        self._slots: dict[Origin, asyncio.Semaphore] = {}
        self._tls: dict[str, ssl.SSLContext] = {}
        self.users: set[int] = set()  # who still wants idle connections kept

    async def take(self, route: Route, limit: float, *, fresh: bool = False) -> Connection:
        """A connection, pooled or new; give it to `release` after. Raises OSError, Expired."""
        slots = self._slots.setdefault(route.origin, asyncio.Semaphore(MOST))
        await slots.acquire()
        try:
            rows = self._idle.get(route.key, [])
            while rows:
                connection, expiry = rows.pop()
                expiry.cancel()
                if fresh or connection.closed:
                    connection.abort()
                    continue
                connection.reused = True
                return connection
            if env.get("LLAMOOT_OFFLINE") and not route.origin.loopback:
                raise Refused("LLAMOOT_OFFLINE forbids connections to other machines")
            try:
                async with asyncio.timeout(limit):
                    return await self._connect(route)
            except TimeoutError:
                raise Expired("connect", limit) from None
        except BaseException:
            slots.release()
            raise

    def release(self, route: Route, connection: Connection, finished: bool) -> None:
        """Give a connection back. One whose answer was not finished is closed."""
        self._slots[route.origin].release()
        if finished:
            connection.discard()
        if connection.reusable:
            self._keep(route, connection)
        elif finished and not connection.closed and not connection.complete:
            # The last event is read, the last bytes of the body are still on their way.
            expiry = asyncio.get_running_loop().call_later(LINGER_S, connection.abort)

            def settle() -> None:
                expiry.cancel()
                connection.on_complete = None
                connection.discard()
                if connection.reusable:
                    self._keep(route, connection)
                else:
                    connection.abort()

            connection.on_complete = settle
        else:
            connection.abort()

    def leave(self, user: int) -> None:
        """`user` needs the pool no more; after the last one idle connections are closed."""
        self.users.discard(user)
        if self.users:
            return
        for rows in self._idle.values():
            for connection, expiry in rows:
                expiry.cancel()
                connection.abort()
        self._idle.clear()

    def _keep(self, route: Route, connection: Connection) -> None:
        connection.rest()
        expiry = asyncio.get_running_loop().call_later(IDLE_S, connection.abort)
        rows = self._idle.setdefault(route.key, [])
        rows[:] = [(c, e) for c, e in rows if not c.closed]
        rows.append((connection, expiry))

    def _context(self, ca_file: str) -> ssl.SSLContext:
        if ca_file not in self._tls:
            self._tls[ca_file] = ssl.create_default_context(cafile=ca_file or None)
        return self._tls[ca_file]

    async def _connect(self, route: Route) -> Connection:
        loop = asyncio.get_running_loop()
        origin, proxy = route.origin, route.proxy
        there = proxy or origin
        tls = self._context(route.ca_file) if there.scheme == "https" else None
        _, connection = await loop.create_connection(
            Connection,
            there.host,
            there.port,
            ssl=tls,
            server_hostname=there.host if tls else None,
            happy_eyeballs_delay=0.25,
        )
        if proxy is not None and origin.scheme == "https":
            await self._tunnel(route, connection)
        return connection

    async def _tunnel(self, route: Route, connection: Connection) -> None:
        """Ask the proxy for a tunnel, then speak TLS to the server through it."""
        name = route.origin.host
        host = f"[{name}]:{route.origin.port}" if ":" in name else f"{name}:{route.origin.port}"
        auth = route.proxy_auth.reveal()
        line = f"Proxy-Authorization: {auth}\r\n" if auth else ""
        try:
            # The answer to CONNECT has no body whatever its headers say: HEAD-like, so the
            # connection is taken over as soon as the head is there.
            await connection.send(
                f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{line}\r\n".encode("ascii"), 5.0
            )
            status = await connection.head()
            if status != 200:
                raise Cut(f"the proxy refused the tunnel with status {status}")
            connection.rest()
            assert connection.transport is not None
            secured = await asyncio.get_running_loop().start_tls(
                connection.transport,
                connection,
                self._context(route.ca_file),
                server_hostname=route.origin.host,
            )
            if secured is None:
                raise Cut("the connection was closed before TLS began")
            connection.connection_made(secured)
        except BaseException:
            connection.abort()
            raise


_pools: dict[asyncio.AbstractEventLoop, Pool] = {}


def pool() -> Pool:
    """The pool of the running event loop, shared by every agent on it."""
    loop = asyncio.get_running_loop()
    found = _pools.get(loop)
    if found is None:
        for old in [old for old in _pools if old.is_closed()]:
            del _pools[old]
        found = _pools[loop] = Pool()
    return found
