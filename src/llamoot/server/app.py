"""The application: every route, with and without `/v1`, inside the gate."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from llamoot.errors import BadRequest, LlamootError
from llamoot.server import councils, routes
from llamoot.server.errors import Refused, error_response
from llamoot.server.gate import Gate, Limits
from llamoot.server.routes import route
from llamoot.server.schema import ChatBody, decode
from llamoot.server.state import State, request_id, state_of
from llamoot.server.stream import EventStream
from llamoot.server.translate import request_of

log = logging.getLogger("llamoot.server")
PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class TokenizeBody(Struct, kw_only=True):
    content: str | None = None
    text: str | None = None
    model: str | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


@route
async def tokenize(request: Request) -> Response | EventStream:
    body = decode(await request.body(), TokenizeBody)
    text = body.content if body.content is not None else body.text
    if text is None:
        raise BadRequest("content: is needed", "content")
    ids = await _local(
        request,
        body.model,
        "tokenize",
        text,
        add_special=body.add_special,
        parse_special=body.parse_special,
    )
    return JSONResponse({"tokens": ids, "count": len(ids)})


@route
async def detokenize(request: Request) -> Response | EventStream:
    body = decode(await request.body(), DetokenizeBody)
    return JSONResponse({"content": await _local(request, body.model, "detokenize", body.tokens)})


@route
async def apply_template(request: Request) -> Response | EventStream:
    body = decode(await request.body(), ChatBody)
    asked = request_of(body, request_id(request))
    return JSONResponse({"prompt": await _local(request, body.model, "apply_template", asked)})


async def _local(request: Request, name: str | None, verb: str, *args: Any, **more: Any) -> Any:
    """Call `verb` of a local model; a remote one or a council has no tokens of its own."""
    lease = await state_of(request).registry.lease(name)
    try:
        if not hasattr(lease.agent, verb):
            raise BadRequest(f"'{lease.name}' is not a local model", "model")
        return await getattr(lease.agent, verb)(*args, **more)
    finally:
        lease.release()


@route
async def health(request: Request) -> Response | EventStream:
    if not state_of(request).ready:
        headers = {"Retry-After": "1"}
        raise Refused(503, "loading", "the models are being loaded", headers)
    return JSONResponse({"status": "ok"})


@route
async def metrics(request: Request) -> Response | EventStream:
    text = state_of(request).metrics.text()
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


@route
async def page(request: Request) -> Response | EventStream:
    """The live page and its parts; deep links such as /runs/ID show the same page."""
    file, kind = PAGE.get(request.url.path.lstrip("/"), PAGE[""])
    body = resources.files("llamoot.server").joinpath("page", file).read_bytes()
    headers = {"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-cache"}
    return Response(body, media_type=kind, headers=headers)


def _routes() -> list[BaseRoute]:
    posts = {
        "/chat/completions": routes.chat_completions,
        "/completions": routes.text_completions,
        "/embeddings": routes.embed,
        "/responses": routes.create_response,
        "/messages": routes.create_message,
        "/messages/count_tokens": routes.count_message_tokens,
        "/council/completions": councils.council_completions,
        "/council/transcript": councils.council_transcript,
        "/council/runs/{run}/stop": councils.stop_run,
    }
    gets = {
        "/models": routes.list_models,
        "/models/{name:path}": routes.show_model,
        "/council/runs": councils.list_runs,
        "/council/runs/{run}": councils.run_events,
        "/health": health,
    }
    bare = {"/tokenize": tokenize, "/detokenize": detokenize, "/apply-template": apply_template}
    found: list[BaseRoute] = []
    for prefix in ("/v1", ""):
        found += [Route(prefix + path, end, methods=["POST"]) for path, end in posts.items()]
        found += [Route(prefix + path, end, methods=["GET"]) for path, end in gets.items()]
        found += [Route(prefix + path, end, methods=["POST"]) for path, end in bare.items()]
    found.append(Route("/metrics", metrics, methods=["GET"]))
    found += [Route(f"/{name}", page, methods=["GET"]) for name in PAGE]
    found.append(Route("/runs/{run}", page, methods=["GET"]))
    return found


async def _refused(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"
    text = {404: f"there is nothing at {path}", 405: f"{path} is not allowed"}
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "error")
    message = text.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(Refused(error.status_code, code, message, headers), request.url.path)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlamootError)
    return error_response(error, request.url.path)


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of llamoot itself: one line for the client, the trace for the log."""
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    refused = Refused(500, "internal_error", f"internal error: {type(error).__name__}")
    return error_response(refused, request.url.path)


def create_app(state: State, limits: Limits) -> ASGIApp:
    """The ASGI application over opened or openable models."""

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await state.registry.close()

    handlers: Any = {HTTPException: _refused, LlamootError: _ours, Exception: _unexpected}
    app = Starlette(routes=_routes(), exception_handlers=handlers, lifespan=life)
    app.state.server = state
    return Gate(app, limits)
