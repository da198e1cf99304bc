"""An agent over an engine in this process: the one place that knows text and token ids both.

Agents of the same file share one `Model`, so their prompts share a cache and their answers a
batch. The file is opened at the first question, on a thread.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
import numpy as np
import numpy.typing as npt

from llamoot.agents.answer import Answer
from llamoot.agents.model import AS_FITS, Model, close_model, open_model
from llamoot.agents.types import ChatRequest, ChatToken, Format
from llamoot.engine.budget import Settings
from llamoot.engine.sequence import Output
from llamoot.engine.sequence import Sequence as Tokens
from llamoot.errors import LlamootError, Overloaded, Stream, Timeout
from llamoot.text.forced import forced_call
from llamoot.text.template import ChatTemplate, Prompt, load_template
from llamoot.text.tokenizer import Part

RESERVED = ("messages", "tools", "add_generation_prompt")  # of a template, not the caller's

T = TypeVar("T")
LONG = 20_000  # characters; more take long enough to become tokens that others would notice
_templates: WeakKeyDictionary[Model, ChatTemplate] = WeakKeyDictionary()
_templates_lock = threading.Lock()


def template_of(model: Model) -> ChatTemplate:
    """The chat template of an open model, read once."""
    with _templates_lock:
        if model not in _templates:
            _templates[model] = load_template(model.metadata, model.tokenizer, model.path)
        return _templates[model]


def render(model: Model, request: ChatRequest) -> Prompt:
    """The request's conversation as the prompt its model was trained on."""
    messages = [msgspec.to_builtins(message) for message in request.messages]
    tools = [] if request.tool_choice == "none" else request.tools
    offered = [msgspec.to_builtins(tool) for tool in tools]
    given = {k: v for k, v in request.template_args.items() if k not in RESERVED}
    return template_of(model).render(messages, tools=offered, **given)


def converse(model: Model, request: ChatRequest, load_s: float = 0.0) -> Answer:
    """The answer to a conversation, not begun yet."""
    prompt = render(model, request)
    syntax, parts, reasoning = template_of(model).syntax, list(prompt.parts), prompt.reasoning
    tools = [msgspec.to_builtins(tool) for tool in request.tools]
    forced = forced_call(tools, request.tool_choice, syntax, reasoning=reasoning)
    closed = any(prompt.text.rstrip().endswith(close) for _, close in syntax.think)
    if forced is not None:
        format = Format("schema", forced.schema)
        request = msgspec.structs.replace(request, format=format)
        parts, syntax, reasoning = [*parts, Part(forced.suffix, True)], forced.syntax, False
    if prompt.stop:
        stop = (*request.sampling.stop, *prompt.stop)
        how = msgspec.structs.replace(request.sampling, stop=stop)
        request = msgspec.structs.replace(request, sampling=how)
    ids = model.tokenizer.encode_parts(parts, add_special=False)
    return model.ask(
        request, ids, syntax=syntax, reasoning=reasoning, may_reason=not closed, load_s=load_s
    )


class LocalAgent:
    """A model file that answers. Closing a stream early frees what the answer held at once."""

    def __init__(
        self,
        id: str,
        path: str | Path,
        *,
        settings: Settings = AS_FITS,
        model: str = "",
        timeout: float | None = None,
        context_length: int | None = None,
    ) -> None:
        """Opens nothing yet. `timeout` is seconds for a whole answer."""
        self.id, self.path = id, Path(path)
        self.settings = replace(settings, context=context_length) if context_length else settings
        self.model = model or self.path.stem
        self.timeout, self.busy = timeout, 0
        self._context = context_length
        self._model: Model | None = None
        self._loading: asyncio.Task[Model] | None = None

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together; known once the model is open."""
        return self._model.context_length if self._model else self._context

    @property
    def n_bytes(self) -> int:
        """Memory of weights and cache; 0 while the model is not open."""
        return self._model.n_bytes if self._model else 0

    async def load(self) -> Model:
        """Open the model, or wait for whoever is opening it."""
        if self._model is None:
            if self._loading is None:
                opening = asyncio.to_thread(open_model, self.path, self.settings)
                self._loading = asyncio.ensure_future(opening)
            loading = self._loading
            try:
                self._model = await asyncio.shield(loading)
            finally:
                if loading.done():
                    self._loading = None
        return self._model

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatToken, None]:
        """Stream the answer to the conversation.

        BadRequest (ContextOverflow) and Overloaded come before the first token; what goes wrong
        later is an AgentError that keeps the text received so far.
        """
        model, load_s = await self._timed_load()
        size = sum(len(message.content) for message in request.messages)
        answer = await _aside(size, converse, model, request, load_s)
        async with aclosing(self._stream(model, answer)) as stream:
            async for token in stream:
                yield token

    async def complete(
        self, prompt: str | list[int], request: ChatRequest
    ) -> AsyncGenerator[ChatToken, None]:
        """Stream the continuation of a text, without a template; messages are not looked at."""
        model, load_s = await self._timed_load()
        if isinstance(prompt, str):
            ids = await _aside(len(prompt), model.tokenize, prompt)
        else:
            ids = list(prompt)
        answer = model.ask(request, ids, load_s=load_s)
        async with aclosing(self._stream(model, answer)) as stream:
            async for token in stream:
                yield token

    async def embed(
        self, texts: Sequence[str] | Sequence[list[int]]
    ) -> tuple[list[npt.NDArray[np.float32]], int]:
        """One vector of length 1 for each text, and how many tokens they had."""
        model = await self.load()
        seqs = [await _aside(len(text), model.pooled, text, model.pooling) for text in texts]
        outputs = await asyncio.gather(*(self._pooled(model, seq) for seq in seqs))
        vectors = [model.vector(rows) for rows in outputs]
        return vectors, sum(seq.n_prompt for seq in seqs)

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`."""
        model = await self.load()
        how = partial(model.tokenize, add_special=add_special, parse_special=parse_special)
        return await _aside(len(text), how, text)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return (await self.load()).detokenize(ids)

    async def apply_template(self, request: ChatRequest) -> str:
        """The prompt a conversation becomes."""
        size = sum(len(message.content) for message in request.messages)
        return (await _aside(size, render, await self.load(), request)).text

    async def close(self) -> None:
        """Give the model back; the last agent of a file frees its memory. Safe to call twice."""
        if self._loading is not None:  # somebody gave up waiting for it
            with suppress(LlamootError, OSError):
                await self.load()
        model, self._model = self._model, None
        if model is not None:
            await asyncio.to_thread(close_model, model)

    async def _timed_load(self) -> tuple[Model, float]:
        started, was_open = time.perf_counter(), self._model is not None
        model = await self.load()
        return model, 0.0 if was_open else time.perf_counter() - started

    async def _stream(self, model: Model, answer: Answer) -> AsyncGenerator[ChatToken, None]:
        """Pass the engine's news on until the answer ends, or until nobody listens any more."""
        news = _listen(answer.seq)
        ends = None if self.timeout is None else time.monotonic() + self.timeout
        self.busy += 1
        try:
            model.engine.submit(answer.seq)
            while not answer.is_done:
                output = await self._next(news, ends, answer)
                if output.error is not None:
                    raise self._failure(output.error, answer.partial)
                token = answer.take(output)
                if token is not None:
                    yield token
        finally:
            self.busy -= 1
            model.engine.cancel(answer.seq)

    async def _next(
        self, news: "asyncio.Queue[Output]", ends: float | None, answer: Answer
    ) -> Output:
        if ends is None:
            return await news.get()
        try:
            return await asyncio.wait_for(news.get(), ends - time.monotonic())
        except TimeoutError:
            limit = self.timeout or 0.0
            raise Timeout(self.id, "total", limit, partial=answer.partial) from None

    def _failure(self, error: BaseException, partial: str) -> LlamootError:
        if isinstance(error, LlamootError) and not partial:
            return error
        message = f"the engine stopped: {type(error).__name__}: {error}"
        return Stream(self.id, message, partial=partial)

    async def _pooled(self, model: Model, seq: Tokens) -> npt.NDArray[Any]:
        news = _listen(seq)
        try:
            model.engine.submit(seq)
            output = await news.get()
        finally:
            model.engine.cancel(seq)
        if output.pooled is None:
            raise self._failure(output.error or Overloaded("the engine was closed"), "")
        return output.pooled


async def _aside(size: int, work: Callable[..., T], *given: Any) -> T:
    """The result of `work` on a text of `size`; a long one's on a thread, so that nobody waits."""
    if size < LONG:
        return work(*given)
    return await asyncio.to_thread(work, *given)


def _listen(seq: Tokens) -> "asyncio.Queue[Output]":
    """A queue of this event loop that the engine's thread fills."""
    loop, news = asyncio.get_running_loop(), asyncio.Queue[Output]()

    def tell(output: Output) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(news.put_nowait, output)

    seq.sink = tell
    return news
