"""Exceptions as OpenAI's and Anthropic's error objects; the only place that chooses a status."""

import logging
import uuid
from typing import Any

from starlette.responses import JSONResponse, Response

from llamoot.errors import AgentError, BadRequest, LlamootError, Overloaded

log = logging.getLogger("llamoot.server")

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class Refused(LlamootError):
    """The server itself says no: key, path, method, size, time, shutting down."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


def error_body(error: LlamootError) -> dict[str, Any]:
    """OpenAI's shape; `code` is always a string."""
    kind = KINDS.get(error.status, "server_error")
    body: dict[str, Any] = {
        "message": str(error),
        "type": kind,
        "param": error.param if isinstance(error, BadRequest) else None,
        "code": error.code,
    }
    if isinstance(error, AgentError):
        body["agent"] = error.agent_id
    return {"error": body}


def anthropic_body(error: LlamootError) -> dict[str, Any]:
    """Anthropic's shape."""
    kind = {429: "rate_limit_error", 503: "overloaded_error"}.get(error.status)
    kind = kind or KINDS.get(error.status, "api_error")
    request_id = f"req_{uuid.uuid4().hex[:24]}"
    return {
        "type": "error",
        "error": {"type": kind, "message": str(error)},
        "request_id": request_id,
    }


def error_response(error: LlamootError, path: str = "") -> Response:
    """The HTTP response for an error, in the shape of the route it happened on."""
    headers = dict(getattr(error, "headers", {}))
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    shape = anthropic_body if "/messages" in path else error_body
    if error.status >= 500:
        log.error("%s: %s", type(error).__name__, error)
    return JSONResponse(shape(error), error.status, headers=headers)
