"""Counters and histograms in Prometheus' text form.

The names of llama-server come first, so that its dashboards work; the histograms carry labels for
model and kind. Nothing resets when it is read: averages are over the life of the server.
"""

import time
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from llamoot.agents.types import ChatToken, Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
LLAMA = "llamacpp:"


@dataclass
class Histogram:
    """Counts per bucket of seconds, with sum and number."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, label: str) -> list[str]:
        seen, lines = 0, []
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts):
            seen += count
            lines.append(f'{name}_bucket{{{label},le="{bound}"}} {seen}')
        return [
            *lines,
            f"{name}_sum{{{label}}} {self.total:.6f}",
            f"{name}_count{{{label}}} {seen}",
        ]


class Watch:
    """Times one answer as it streams."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self.metrics, self.model = metrics, model
        self.began = self.last = time.perf_counter()
        self.first = True

    def token(self, token: ChatToken) -> None:
        now = time.perf_counter()
        if token.text or token.reasoning or token.tools:
            name = "time_to_first_token_seconds" if self.first else "inter_token_latency_seconds"
            self.metrics.histograms[name, self.model].add(now - self.last)
            self.first, self.last = False, now
        if token.usage is not None:
            self.metrics.count(token.usage)

    def end(self, outcome: str) -> None:
        seconds = time.perf_counter() - self.began
        self.metrics.histograms["e2e_request_latency_seconds", self.model].add(seconds)
        self.metrics.outcomes[self.model, outcome] += 1


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self.started = time.time()
        self.usage = Usage()
        self.processing = 0
        self.histograms: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.outcomes: defaultdict[tuple[str, str], int] = defaultdict(int)

    def watch(self, model: str) -> Watch:
        return Watch(self, model)

    def count(self, usage: Usage) -> None:
        old = self.usage
        self.usage = Usage(
            prompt_tokens=old.prompt_tokens + usage.prompt_tokens,
            cached_tokens=old.cached_tokens + usage.cached_tokens,
            completion_tokens=old.completion_tokens + usage.completion_tokens,
            prefill_s=old.prefill_s + usage.prefill_s,
            decode_s=old.decode_s + usage.decode_s,
        )

    def text(self) -> str:
        """The page that `/metrics` answers with."""
        u = self.usage
        fresh = u.prompt_tokens - u.cached_tokens
        rows = (
            ("prompt_tokens_total", "counter", fresh),
            ("prompt_tokens_cached_total", "counter", u.cached_tokens),
            ("prompt_seconds_total", "counter", u.prefill_s),
            ("tokens_predicted_total", "counter", u.completion_tokens),
            ("tokens_predicted_seconds_total", "counter", u.decode_s),
            ("prompt_tokens_seconds", "gauge", fresh / u.prefill_s if u.prefill_s else 0.0),
            (
                "predicted_tokens_seconds",
                "gauge",
                u.completion_tokens / u.decode_s if u.decode_s else 0.0,
            ),
            ("requests_processing", "gauge", self.processing),
            ("requests_deferred", "gauge", 0),
        )
        lines = []
        for name, kind, value in rows:
            lines += [f"# TYPE {LLAMA}{name} {kind}", f"{LLAMA}{name} {value:g}"]
        typed = set()
        for (name, model), histogram in sorted(self.histograms.items()):
            if name not in typed:
                typed.add(name)
                lines.append(f"# TYPE llamoot:{name} histogram")
            lines += histogram.lines(f"llamoot:{name}", f'model="{_label(model)}"')
        if self.outcomes:
            lines.append("# TYPE llamoot:requests_total counter")
        for (model, outcome), count in sorted(self.outcomes.items()):
            label = f'model="{_label(model)}",outcome="{outcome}"'
            lines.append(f"llamoot:requests_total{{{label}}} {count}")
        return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
