"""From the engine's tokens to the pieces of an answer: text, reasoning, tool calls, usage."""

import os

from llamoot.agents.types import ChatToken, Logprob, ToolPiece, TopLogprob, Usage
from llamoot.engine.sampler import Chosen
from llamoot.engine.sequence import Output, Sequence
from llamoot.text.output import Delta
from llamoot.text.stream import TextStream
from llamoot.text.tokenizer import Tokenizer


class Answer:
    """One answer as it grows. Feed it what the engine says; `is_done` after the last piece."""

    def __init__(
        self, seq: Sequence, stream: TextStream, tokenizer: Tokenizer, load_s: float = 0.0
    ) -> None:
        self.seq, self.partial = seq, ""
        self.is_done = False
        self._stream, self._tokenizer, self._load_s = stream, tokenizer, load_s
        self._n_tokens = self._n_reasoning = 0
        self._names: dict[int, str] = {}

    def take(self, output: Output) -> ChatToken | None:
        """The piece that `output` adds; None while it is held back. Errors are raised."""
        if output.error is not None:
            raise output.error
        logprobs: list[Logprob] = []
        text, reasoning, tools = "", "", list[ToolPiece]()
        for chosen in output.tokens:
            delta = self._stream.feed(chosen.id)
            self._n_tokens += 1
            self._n_reasoning += bool(delta.reasoning)
            if self.seq.params.logprobs >= 0:
                logprobs.append(self._logprob(chosen))
            text, reasoning = text + delta.text, reasoning + delta.reasoning
            tools += self._pieces(delta)
            if self._stream.stopped is not None:
                break
        finish: str | None = "stop" if self._stream.stopped is not None else output.finish
        if finish:
            delta = self._stream.finish()
            text, reasoning = text + delta.text, reasoning + delta.reasoning
            tools += self._pieces(delta)
            if finish == "stop" and self._stream.n_calls:
                finish = "tool_calls"
        self.partial += text
        self.is_done = bool(finish)
        if not (text or reasoning or tools or logprobs or finish):
            return None
        return ChatToken(
            text=text,
            reasoning=reasoning,
            tools=tuple(tools),
            logprobs=tuple(logprobs),
            finish_reason=finish,
            usage=self.usage() if finish else None,
            stopped_by=(self._stream.stopped or "") if finish else "",
        )

    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        seq = self.seq
        started, first = seq.admitted or seq.ended, seq.first_token or seq.ended
        return Usage(
            prompt_tokens=seq.n_prompt,
            cached_tokens=seq.cached,
            completion_tokens=self._n_tokens,
            reasoning_tokens=self._n_reasoning,
            wait_s=max(0.0, started - seq.submitted),
            load_s=self._load_s,
            prefill_s=max(0.0, first - started),
            decode_s=max(0.0, seq.last_token - first),
        )

    def _pieces(self, delta: Delta) -> list[ToolPiece]:
        """Pieces of calls; the first of each gets an id."""
        out = []
        for piece in delta.tools:
            id = ""
            if piece.index not in self._names:
                id = self._names[piece.index] = "call_" + os.urandom(12).hex()
            out.append(ToolPiece(piece.index, id, piece.name, piece.arguments))
        return out

    def _logprob(self, chosen: Chosen) -> Logprob:
        top = tuple(TopLogprob(self._text(i), p) for i, p in chosen.top)
        return Logprob(self._text(chosen.id), chosen.logprob, top)

    def _text(self, token: int) -> str:
        return self._tokenizer.piece(token).decode("utf-8", "replace")
