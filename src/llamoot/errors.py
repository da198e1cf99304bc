"""Every exception of the package, whose fault it is, and what a server answers.

LlamootError
├── BadRequest          400  the request cannot be served as written        (param)
│   ├── ContextOverflow 400  context_length_exceeded             (n_prompt, n_context)
│   └── UnknownModel    404  model_not_found
├── ModelFileError      500  the GGUF file is broken or not supported       (path, where)
├── Overloaded          429  queue or cache full                            (retry_after)
├── ConfigError              the configuration is wrong                     (file, key, nearest)
├── CouncilFailed       502  a run ended without an answer                  (code, run_id)
└── AgentError          502  an expert failed                (agent_id, partial, retryable)
    ├── Transport            not reached, or refused: DNS, TLS, connect, status (status, body)
    ├── Stream               it answered, and the answer broke off or made no sense
    └── Timeout         504  connect, write, first_token, idle or total     (timer)

Messages are one sentence that names what, where and what to do. Key material never enters one.
"""


class LlamootError(Exception):
    """Base of everything this package raises on purpose."""

    status = 500
    code = "internal_error"


class BadRequest(LlamootError):
    """The caller's request cannot be served as written; `param` names the offending field."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextOverflow(BadRequest):
    """The prompt does not fit the context; both counts are in tokens."""

    code = "context_length_exceeded"

    def __init__(self, n_prompt: int, n_context: int, param: str | None = "messages") -> None:
        super().__init__(
            f"the prompt has {n_prompt} tokens but the context holds {n_context}; "
            "shorten the prompt or open the model with a larger context",
            param,
        )
        self.n_prompt, self.n_context = n_prompt, n_context


class UnknownModel(BadRequest):
    """No model of that name is served."""

    status = 404
    code = "model_not_found"


class ModelFileError(LlamootError):
    """The model file is broken or not supported; `where` is a key, a tensor or a byte offset."""

    code = "model_file_error"

    def __init__(self, path: object, where: str, message: str) -> None:
        super().__init__(f"{path}: {where}: {message}")
        self.path, self.where = str(path), where


class Overloaded(LlamootError):
    """Queue or cache is full; try again after `retry_after` seconds."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConfigError(LlamootError):
    """The configuration is wrong; `nearest` is the valid key that was probably meant."""

    status = 400
    code = "config_error"

    def __init__(self, file: object, key: str, message: str, nearest: str | None = None) -> None:
        hint = f"; did you mean '{nearest}'?" if nearest else ""
        super().__init__(f"{file}: {key}: {message}{hint}")
        self.file, self.key, self.nearest = str(file), key, nearest


class CouncilFailed(LlamootError):
    """A run ended without an answer. `code` is one of the codes of the `council_failed` event."""

    status = 502

    def __init__(self, code: str, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.code, self.run_id = code, run_id


class AgentError(LlamootError):
    """An expert failed. `partial` is the text received before; it is never an answer by itself."""

    status = 502
    code = "agent_error"

    def __init__(
        self, agent_id: str, message: str, *, partial: str = "", retryable: bool = False
    ) -> None:
        super().__init__(f"{agent_id}: {message}")
        self.agent_id, self.message = agent_id, message
        self.partial, self.retryable = partial, retryable


class Transport(AgentError):
    """The endpoint could not be reached, or refused; `body` is shortened and redacted."""

    code = "agent_unreachable"

    def __init__(
        self,
        agent_id: str,
        message: str,
        *,
        http_status: int | None = None,
        body: str = "",
        partial: str = "",
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(agent_id, message, partial=partial, retryable=retryable)
        self.http_status, self.body, self.retry_after = http_status, body, retry_after


class Stream(AgentError):
    """The endpoint answered, and the answer broke off or made no sense."""

    code = "agent_stream_broken"


class Timeout(AgentError):
    """A timer ran out; `timer` is connect, write, first_token, idle or total."""

    status = 504
    code = "agent_timeout"

    def __init__(self, agent_id: str, timer: str, seconds: float, *, partial: str = "") -> None:
        super().__init__(
            agent_id,
            f"no progress within the {timer} limit of {seconds:g} s",
            partial=partial,
            retryable=not partial,
        )
        self.timer, self.seconds = timer, seconds
