"""The agent contract: what is asked, what streams back, and how a stream ends.

A stream of an agent ends in exactly one of two ways: a `ChatToken` that carries a finish reason
(with the usage, if it is known), or one raised `AgentError`. Nothing follows either.
An agent whose `chat` iterator is closed early (`aclose`) frees what it holds: the socket of a
remote agent, the cache blocks of a local one.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from msgspec import Struct

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(Struct, frozen=True):
    """A complete call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class Tool(Struct, frozen=True, omit_defaults=True):
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Sampling(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How the next token is chosen. None means the agent's own default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: off; n: the chosen token and the n most likely


class Format(Struct, frozen=True):
    """A constraint on the answer: a schema (dict), regex or grammar (str), choices (list)."""

    kind: Literal["json", "schema", "regex", "choice", "grammar"]
    value: Any = None
    name: str = "answer"


class ChatRequest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One question to one agent. `model` is only for agents that serve several."""

    messages: tuple[Message, ...]
    model: str = ""
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"  # auto, none, required, or the name of a tool
    parallel_tool_calls: bool = True
    format: Format | None = None
    template_args: dict[str, Any] = {}  # enable_thinking, reasoning_effort, …
    drafts: tuple[str, ...] = ()  # texts the answer probably repeats (prompt look-up)
    adapters: dict[str, float] = {}  # LoRA name -> scale
    request_id: str = ""


class ToolPiece(Struct, frozen=True, omit_defaults=True):
    """A piece of a streamed call; pieces of one call share `index`, id and name come first."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class TopLogprob(Struct, frozen=True):
    token: str
    logprob: float


class Logprob(Struct, frozen=True, omit_defaults=True):
    """Natural-log probability of a generated token, with the most likely alternatives."""

    token: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens and seconds of one call. `prompt_tokens` includes `cached_tokens`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    wait_s: float = 0.0
    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class ChatToken(Struct, frozen=True, omit_defaults=True):
    """One piece of a streamed answer; the last one carries `finish_reason`."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tools: tuple[ToolPiece, ...] = ()
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: str | None = None  # stop, length, tool_calls, content_filter
    usage: Usage | None = None
    stopped_by: str = ""  # with the finish reason: the stop string that was met, where known


class AgentSpec(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How to open an agent. `base_url` empty: a local model. The key is named, never held.

    `model` is a name at the endpoint, a GGUF path or a catalogue name; `script` makes a scripted
    agent that gives these answers in turn. Timers are seconds; None means the agent's default.
    """

    id: str
    model: str = ""
    base_url: str = ""
    api_key_env: str = ""
    headers: dict[str, str] = {}
    proxy: str = ""
    ca_file: str = ""
    connect_timeout: float | None = None
    write_timeout: float | None = None
    first_token_timeout: float | None = None
    idle_timeout: float | None = None
    timeout: float | None = None  # total
    retries: int | None = None
    context_length: int | None = None
    script: tuple[str, ...] = ()


class Agent(Protocol):
    """Anything that answers a chat request with a stream."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def context_length(self) -> int | None: ...

    def chat(self, request: ChatRequest) -> AsyncIterator[ChatToken]:
        """Stream the answer; see the module's first lines for how it ends."""
        ...

    async def close(self) -> None:
        """Free what the agent holds. Safe to call twice."""
        ...


class Embedder(Protocol):
    """Anything that turns texts into vectors of one length."""

    async def embed(self, texts: list[str]) -> list[list[float]]: ...
