"""A model opened to run: its weights, its cache, its step header and the recorded forward pass.

Fill `step`, call `run`, read logits. Which block belongs to which sequence is the caller's
business; a runner only reads and writes the blocks that the step header names.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from llamoot import env
from llamoot.errors import BadRequest, ConfigError, ContextOverflow, ModelFileError
from llamoot.gguf.reader import GGUF, open_gguf
from llamoot.kernels.compiled import Compiled
from llamoot.kernels.step import BLOCK, Step
from llamoot.kernels.table import Attention, Cache, CacheType, Executor, Floats
from llamoot.kernels.twins import Twins
from llamoot.model.block import Block
from llamoot.model.config import Config, read_config
from llamoot.model.forward import Forward
from llamoot.model.layers import Layer
from llamoot.model.lora import Adapted
from llamoot.model.plan import choose_sizes
from llamoot.model.rope import alibi_slopes, attention_scale, factors_of, rope_of
from llamoot.model.scratch import Scratch, needs
from llamoot.model.slots import Slots, state_shapes
from llamoot.model.weights import Bound, Weights, bind, specs_of

EXECUTORS: dict[str, type[Twins] | type[Compiled]] = {"compiled": Compiled, "twins": Twins}


class Runner:
    """One model, one cache, one step at a time; not for several threads at once."""

    def __init__(
        self,
        gguf: GGUF,
        config: Config,
        step: Step,
        executor: Executor,
        n_blocks: int,
        cache_type: CacheType,
    ) -> None:
        self.gguf, self.config, self.step = gguf, config, step
        self.n_blocks, self.cache_type = n_blocks, cache_type
        self.context = step.max_blocks * BLOCK
        self._executor = executor
        self.adapted = executor if isinstance(executor, Adapted) else None
        self._slots = Slots(step.max_seqs)
        specs = specs_of(gguf, config)
        self.weights: Weights = bind(gguf, config, executor)
        self._scratch = Scratch(needs(config, specs), executor)
        self._blocks: list[Block] = []
        for layer, bound in zip(config.layers, self.weights.layers):
            self._blocks.append(self._block(layer, bound))
        executor.record(Forward(config, self.weights, self._blocks, self._scratch))

    def _block(self, layer: Layer, bound: Bound) -> Block:
        c = self.config
        factors = factors_of(c, self.weights.model.vectors, self.context)
        how = Attention(
            n_heads=layer.n_heads,
            n_kv_heads=layer.n_kv_heads,
            head_dim=layer.head_dim,
            v_dim=layer.v_dim,
            scale=attention_scale(c, layer),
            causal=c.causal,
            window=c.window if layer.windowed and not c.traits.window_chunk else 0,
            symmetric_window=not c.causal,
            chunk=c.window if layer.windowed and c.traits.window_chunk else 0,
            softcap=c.attn_softcap,
            sinks=bound.vector("attn_sinks"),
            alibi=alibi_slopes(layer.n_heads, c.alibi) if c.alibi else None,
        )
        cache = None
        if layer.shares >= 0:
            cache = self._blocks[layer.shares].cache
        elif layer.cached:
            shape = layer.n_kv_heads, layer.head_dim, layer.v_dim
            cache = self._executor.cache(self.n_blocks, *shape, self.cache_type)
        rope = rope_of(c, layer, factors) if layer.cached else None
        states = {
            name: np.zeros((self.step.max_seqs, *shape), np.float32)
            for name, shape in state_shapes(c, layer).items()
        }
        return Block(layer, bound, rope, how, cache, states)

    @property
    def caches(self) -> list[Cache]:
        own = (block.cache for block in self._blocks if block.layer.caches)
        return [cache for cache in own if cache is not None]

    @property
    def has_logits(self) -> bool:
        """Whether the model predicts tokens; an encoder has hidden rows only."""
        return not self.config.traits.headless

    @property
    def recurrent(self) -> bool:
        """Whether sequences have a state: no block may be shared and no token taken back."""
        return self.config.recurrent

    @property
    def block_bytes(self) -> int:
        """Bytes of one cache block over all layers."""
        return sum(a[:1].nbytes for cache in self.caches for a in (cache.k, cache.v))

    def run(self, logits: bool = True) -> Floats:
        """Execute what the step holds; logits (n_outputs, vocab), a view valid until the next run.

        Without `logits`, and by an encoder, only hidden rows are computed. At most
        `step.max_outputs` rows of logits fit.
        """
        step = self.step
        logits = logits and self.has_logits
        assert not logits or step.n_outputs <= step.max_outputs, "more outputs than logits rows"
        step.want_logits(logits)
        if self.recurrent:
            self._slots.assign(step)
        self._executor.run()
        if not self.has_logits:
            return np.zeros((0, 0), np.float32)
        return self._scratch.get("logits").data[: step.n_logits]

    def hidden(self) -> Floats:
        """Final-normed hidden rows (n_outputs, dim) of the last run; a view."""
        return self._scratch.get("hidden").data[: self.step.n_outputs]

    def finished(self, pooled: Floats) -> Floats:
        """A pooled hidden row (dim,) after the file's dense heads, where it has any."""
        vector = pooled
        for name in ("dense_2", "dense_3"):
            matrix = self.weights.model.vector(name)
            if matrix is not None:
                vector = np.asarray(matrix @ vector, np.float32)
        return vector

    def copy_block(self, src: int, dst: int) -> None:
        """Copy one cache block of every layer: what copy-on-write needs."""
        for cache in self.caches:
            cache.k[dst] = cache.k[src]
            cache.v[dst] = cache.v[src]

    def close(self) -> None:
        """Give threads and memory back; safe to call twice."""
        self._executor.close()
        self._blocks = []
        self.weights = Weights(Bound(), [])
        self.gguf.close()


def open_runner(
    path: str | os.PathLike[str],
    *,
    context: int = 0,
    max_tokens: int = 512,
    max_seqs: int = 16,
    max_outputs: int = 0,
    n_blocks: int = 0,
    cache_type: CacheType = "f16",
    threads: int = 0,
    executor: str = "",
    adapters: Mapping[str, str] | None = None,
) -> Runner:
    """Open the model in `path`, with LoRA `adapters` (name -> path) that requests may ask for.

    `context` is positions of one sequence (0: the model's own, at most 8192); `max_tokens` fit
    one step, `max_seqs` sequences, `max_outputs` rows of logits (0: 64, or one per sequence);
    `n_blocks` is the cache in blocks of 32 positions (0: one context and 512 positions for each
    further sequence); `executor` is twins or compiled (empty: LLAMOOT_KERNELS).
    Raises ModelFileError for a file that is broken or not known, before any weight is read.
    """
    name = executor or str(env.get("LLAMOOT_KERNELS"))
    if name not in EXECUTORS:
        known = " or ".join(EXECUTORS)
        raise ConfigError("environment", "LLAMOOT_KERNELS", f"'{name}' is not {known}")
    gguf = open_gguf(path)
    try:
        config = read_config(gguf)
        specs_of(gguf, config)
    except ModelFileError:
        gguf.close()
        raise
    sizes = choose_sizes(config, context, max_tokens, max_seqs, max_outputs, n_blocks, cache_type)
    step = Step(max_tokens, max_seqs, sizes.max_blocks, sizes.max_outputs)
    made: Executor = EXECUTORS[name](step, threads)
    if adapters:
        made = Adapted(made, step, gguf, adapters)
    return Runner(gguf, config, step, made, sizes.n_blocks, cache_type)


def run_alone(runner: Runner, tokens: Sequence[int], chunk: int = 0) -> Floats:
    """Logits (n, vocab) of every token of one sequence, in blocks 0, 1, … and in chunks.

    Overwrites the cache. Raises BadRequest for ids that are none, ContextOverflow for too many.
    """
    step, tokens = runner.step, [int(t) for t in tokens]
    wrong = [t for t in tokens if not 0 <= t < runner.config.n_vocab]
    if wrong or not tokens:
        what = f"token {wrong[0]} is" if wrong else "no tokens are"
        raise BadRequest(f"{what} not in a vocabulary of {runner.config.n_vocab}", "tokens")
    if len(tokens) > min(runner.context, runner.n_blocks * BLOCK):
        raise ContextOverflow(len(tokens), min(runner.context, runner.n_blocks * BLOCK), "tokens")
    if not runner.has_logits:
        raise BadRequest("this model is an encoder: it has embeddings, not logits", "model")
    most = min(chunk or step.max_tokens, step.max_tokens, step.max_outputs)
    blocks = list(range(-(-len(tokens) // BLOCK)))
    parts = []
    for start in range(0, len(tokens), most):
        step.clear()
        step.add(tokens[start : start + most], start, blocks, "all")
        parts.append(runner.run().copy())
    return np.concatenate(parts)
