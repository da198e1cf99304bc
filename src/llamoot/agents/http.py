"""The agent behind any OpenAI-compatible endpoint: `POST …/chat/completions`, streamed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from msgspec import Struct

from llamoot.agents import wire
from llamoot.agents.accumulate import Incoming
from llamoot.agents.capabilities import capability
from llamoot.agents.client import Client, Timers
from llamoot.agents.endpoint import Endpoint, Secret
from llamoot.agents.request import Replay, chat_body
from llamoot.agents.transport import Connection, Refused
from llamoot.agents.types import ChatRequest, ChatToken
from llamoot.errors import AgentError

_DOWNGRADES = 8  # parameters that one call may lose before it gives up
_TAIL_S = 2.0  # seconds that usage and [DONE] may take to follow the finish reason


class CallInfo(Struct, kw_only=True):
    """What the last call told besides its answer."""

    attempts: int = 0
    served_model: str = ""
    response_id: str = ""
    request_id: str = ""  # the server's, for its support
    first_token_s: float = 0.0
    limits: dict[str, str] = {}  # x-ratelimit-…


class OpenAIAgent:
    """Asks one model at one endpoint. Opens no connection before the first `chat`."""

    def __init__(
        self,
        id: str,
        model: str,
        base_url: str,
        *,
        key: Secret | str = "",
        headers: Mapping[str, str | Secret] | None = None,
        timers: Timers | None = None,
        retries: int = 2,
        context_length: int | None = None,
        ca_file: str = "",
        proxy: str | None = None,
        replay: Replay = "none",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.id, self.model, self.context_length = id, model, context_length
        self.timers = timers or Timers()
        self.endpoint = Endpoint(base_url, key=key, headers=headers, model=model)
        self.replay, self.extra = replay, dict(extra or {})
        self.last_call = CallInfo()
        self.client = Client(
            id, self.endpoint, self.timers, retries=retries, ca_file=ca_file, proxy=proxy
        )

    @property
    def timeout(self) -> float | None:
        return self.timers.total

    def __repr__(self) -> str:
        return f"OpenAIAgent({self.id!r}, {self.model!r}, {self.endpoint.shown()!r})"

    async def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        """Stream the answer; closing the iterator closes the socket."""
        attempts = self.client.attempts()
        info = self.last_call = CallInfo()
        began = asyncio.get_running_loop().time()
        while True:
            delivered, connection = False, None
            answer = Incoming(self.id, self.client.secrets)
            info.attempts += 1
            try:
                connection = await self._open(request, attempts.total_at)
                while True:
                    data = await self._read(connection, answer)
                    tokens = answer.feed(data) if data else answer.end()
                    if tokens and not delivered:
                        delivered = True
                        connection.started()
                        info.first_token_s = asyncio.get_running_loop().time() - began
                    for token in tokens:
                        yield token
                    if answer.failure is not None:
                        raise answer.failure
                    if not data:
                        break
                self._note(info, answer, connection)
                self.client.release(connection, True)
                connection = None
                yield answer.last()
                return
            except AgentError as error:
                if connection is not None:
                    self.client.release(connection, False)
                    connection = None
                if delivered or not await attempts.again(error):
                    raise
            finally:
                if connection is not None:
                    self.client.release(connection, False)

    async def _read(self, connection: Connection, answer: Incoming) -> bytes:
        """More bytes of the answer; b"" once nothing more is needed."""
        if answer.done:
            return b""
        try:
            if not answer.finish:
                return await connection.read()
            # Complete but for usage and [DONE]: a server that forgets both is not waited for.
            async with asyncio.timeout(_TAIL_S):
                return await connection.read()
        except (OSError, Refused) as error:
            if answer.finish:
                return b""
            raise self.client.failed(error, answer.partial, answered=True) from None

    async def _open(self, request: ChatRequest, total_at: float) -> Connection:
        """The response to `request`, of status 2xx, after as many downgrades as it takes."""
        model = self.model or request.model
        body = chat_body(request, model, self.endpoint.origin, self.replay)
        body.update(self.extra)
        if self.endpoint.deployment:
            del body["model"]
        known = capability(self.endpoint.shown(), model)
        for left in reversed(range(_DOWNGRADES + 1)):
            sent = known.apply(body)
            connection = await self.client.open(
                "POST", "chat/completions", wire.encode(sent), total_at, request.request_id
            )
            if connection.status < 300:
                return connection
            status = connection.status
            problem = await self.client.problem(connection)
            if not (left and status in (400, 422) and known.learn(problem, body, sent)):
                raise self.client.refused(connection, problem)
        raise AssertionError("the last downgrade returns or raises")

    def _note(self, info: CallInfo, answer: Incoming, connection: Connection) -> None:
        headers = connection.headers
        info.served_model, info.response_id = answer.model, answer.response_id
        names = ("x-request-id", "x-litellm-call-id", "x-generation-id", "x-ds-trace-id")
        info.request_id = next((headers[name] for name in names if name in headers), "")
        info.limits = {k: v for k, v in headers.items() if k.startswith("x-ratelimit-")}

    async def close(self) -> None:
        """Idle connections that no other agent uses are closed."""
        self.client.close()
