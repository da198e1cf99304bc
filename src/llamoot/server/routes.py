"""The OpenAI- and Anthropic-compatible routes: decode, lease a model, answer whole or streamed."""

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from llamoot.council.agent import CouncilAgent
from llamoot.errors import BadRequest, LlamootError, UnknownModel
from llamoot.server import chat, completions, embeddings, messages, responses
from llamoot.server.errors import anthropic_body, error_body, error_response
from llamoot.server.gather import written
from llamoot.server.registry import Lease, model_body
from llamoot.server.schema import ChatBody, CompletionBody, decode
from llamoot.server.state import Quiet, Watched, request_id, state_of, watched
from llamoot.server.stream import DONE, EventStream, event, unless_gone
from llamoot.server.translate import request_of

Handler = Callable[[Request], Awaitable[Response | EventStream]]


def route(handler: Handler) -> Callable[[Request], Awaitable[Any]]:
    """Every failure of a handler becomes the right error object, in one place."""

    @functools.wraps(handler)
    async def answering(request: Request) -> Any:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except LlamootError as error:
            return error_response(error, request.url.path)
        except RecursionError:
            return error_response(BadRequest("the body is nested too deeply"), request.url.path)

    return answering


def openai_failure(error: LlamootError) -> bytes:
    """The frame of an error in the middle of a stream, and the end of the stream."""
    return event(error_body(error)) + DONE


async def _whole(
    request: Request, lease: Lease, work: Awaitable[dict[str, Any]], headers: dict[str, str]
) -> Response:
    """A plain answer; the client's leaving cancels the work."""
    try:
        body = await unless_gone(request.receive, work)
    finally:
        lease.release()
    return JSONResponse(body, headers=headers) if body is not None else Response(status_code=499)


async def _streamed(
    request: Request,
    events: AsyncGenerator[bytes, None],
    lease: Lease,
    headers: dict[str, str],
    failure: Callable[[LlamootError], bytes] = openai_failure,
) -> EventStream:
    stream = EventStream(events, failure, lease.release, headers)
    await stream.open(request.receive)
    return stream


@route
async def chat_completions(request: Request) -> Response | EventStream:
    state, name = state_of(request), request_id(request)
    body = decode(await request.body(), ChatBody)
    asked = request_of(body, name)
    lease = await state.registry.lease(body.model)
    agent, n = watched(lease, state.metrics), body.n or 1
    headers = {"x-request-id": name}
    if body.deliberation is False:
        agent = Quiet(agent)
    extra = functools.partial(_report, lease, name)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        chunks = chat.chunks(agent, asked, n, lease.name, extra, usage)
        return await _streamed(request, chunks, lease, headers)
    return await _whole(request, lease, chat.whole(agent, asked, n, lease.name, extra), headers)


def _report(lease: Lease, name: str) -> dict[str, Any]:
    """The extension object of a council's answer: run, agreement, dissent, cost."""
    agent = lease.agent
    return {"council": agent.report(name)} if isinstance(agent, CouncilAgent) else {}


def _completer(lease: Lease, watch: Watched) -> completions.Completer:
    agent: Any = lease.agent
    if not hasattr(agent, "complete"):
        lease.release()
        message = f"'{lease.name}' answers chat only; use /v1/chat/completions"
        raise BadRequest(message, "model")
    return _Counted(agent, watch)


class _Counted:
    """A completer whose answers are timed and counted."""

    def __init__(self, completer: Any, watch: Watched) -> None:
        self.completer, self._watch = completer, watch
        self.id, self.model = completer.id, completer.model
        self.timeout, self.context_length = completer.timeout, completer.context_length
        self.chat, self.detokenize = completer.chat, completer.detokenize

    def complete(self, prompt: completions.Prompt, request: Any) -> Any:
        return self._watch.watch(self.completer.complete(prompt, request))

    async def close(self) -> None:
        """The completer belongs to the registry."""


@route
async def text_completions(request: Request) -> Response | EventStream:
    state, name = state_of(request), request_id(request)
    body = decode(await request.body(), CompletionBody)
    asked = completions.request_of(body, name)
    completions.prompts_of(body)
    lease = await state.registry.lease(body.model)
    agent = _completer(lease, Watched(lease, state.metrics))
    headers = {"x-request-id": name}
    if body.stream:
        chunks = completions.chunks(agent, body, asked, lease.name)
        return await _streamed(request, chunks, lease, headers)
    work = completions.whole(agent, body, asked, lease.name)
    return await _whole(request, lease, work, headers)


@route
async def embed(request: Request) -> Response | EventStream:
    state = state_of(request)
    body = decode(await request.body(), embeddings.EmbeddingBody)
    embeddings.inputs_of(body)
    lease = await state.registry.lease(body.model)
    agent: Any = lease.agent
    if not hasattr(agent, "embed"):
        lease.release()
        raise BadRequest(f"'{lease.name}' makes no embeddings", "model")
    work = embeddings.embeddings(agent, body, lease.name)
    return await _whole(request, lease, work, {})


@route
async def create_response(request: Request) -> Response | EventStream:
    state, name = state_of(request), request_id(request)
    body = decode(await request.body(), responses.ResponsesBody)
    asked = responses.request_of(body, name)
    lease = await state.registry.lease(body.model)
    agent, writer = watched(lease, state.metrics), responses.Writer(body, lease.name)
    headers = {"x-request-id": name}
    if body.stream:
        events = written(agent, asked, writer)
        return await _streamed(request, events, lease, headers, writer.failed)
    return await _whole(request, lease, responses.whole(agent, asked, writer), headers)


def anthropic_failure(error: LlamootError) -> bytes:
    return event(anthropic_body(error), "error")


@route
async def create_message(request: Request) -> Response | EventStream:
    state, name = state_of(request), request_id(request)
    body = decode(await request.body(), messages.MessagesBody)
    asked = messages.request_of(body, name)
    lease = await state.registry.lease(body.model)
    agent, writer = watched(lease, state.metrics), messages.Writer(lease.name)
    headers = {"x-request-id": name, "request-id": name}
    if body.stream:
        events = written(agent, asked, writer)
        return await _streamed(request, events, lease, headers, anthropic_failure)
    return await _whole(request, lease, messages.whole(agent, asked, writer), headers)


@route
async def count_message_tokens(request: Request) -> Response | EventStream:
    state = state_of(request)
    body = decode(await request.body(), messages.MessagesBody)
    asked = messages.request_of(body, request_id(request), counting=True)
    lease = await state.registry.lease(body.model)
    try:
        agent: Any = lease.agent
        if not hasattr(agent, "apply_template"):
            raise BadRequest(f"'{lease.name}' cannot count tokens", "model")
        prompt = await agent.apply_template(asked)
        ids = await agent.tokenize(prompt, add_special=False, parse_special=True)
    finally:
        lease.release()
    return JSONResponse({"input_tokens": len(ids)})


@route
async def list_models(request: Request) -> Response | EventStream:
    entries = state_of(request).registry.entries.values()
    return JSONResponse({"object": "list", "data": [model_body(entry) for entry in entries]})


@route
async def show_model(request: Request) -> Response | EventStream:
    entries, name = state_of(request).registry.entries, request.path_params["name"]
    if name not in entries:
        raise UnknownModel(f"the model '{name}' is not served here", "model")
    return JSONResponse(model_body(entries[name]))
