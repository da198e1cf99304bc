"""The sampler against its plain definition, and against llama.cpp where that is installed."""

import ctypes
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamoot.engine.sampler import Params, Sampler, draw, dry, top, uniform

pytestmark = pytest.mark.pure


def plain(logits: np.ndarray, ids: list[int], p: Params) -> dict[int, float]:
    """The chain written without any haste: token -> probability. Without XTC."""
    x = {i: float(v) for i, v in enumerate(logits)}
    for i, bias in p.logit_bias.items():
        x[i] += bias
    window = ids[-p.repeat_last_n :] if p.repeat_last_n > 0 else ids
    for i, n in Counter(window if p.repeat_last_n else []).items():
        x[i] = x[i] * p.repeat_penalty if x[i] <= 0 else x[i] / p.repeat_penalty
        x[i] -= n * p.frequency_penalty + p.presence_penalty
    order = sorted(x, key=lambda i: -x[i])
    if p.top_k:
        order = order[: p.top_k]
    if p.typical_p < 1:
        q = chances(x, order)
        entropy = -sum(c * math.log(c) for c in q.values())
        order.sort(key=lambda i: abs(-math.log(q[i]) - entropy))
        order = until(order, q, lambda total: total > p.typical_p)
    if p.top_p < 1:
        order.sort(key=lambda i: -x[i])
        order = until(order, chances(x, order), lambda total: total >= p.top_p)
    if p.min_p > 0:
        best = max(x[i] for i in order)
        order = [i for i in order if x[i] >= best + math.log(p.min_p)]
    return chances({i: v / p.temperature for i, v in x.items()}, order)


def chances(x: dict[int, float], order: list[int]) -> dict[int, float]:
    best = max(x[i] for i in order)
    weights = {i: math.exp(x[i] - best) for i in order}
    return {i: w / sum(weights.values()) for i, w in weights.items()}


def until(order: list[int], q: dict[int, float], enough: Any) -> list[int]:
    total = 0.0
    for n, i in enumerate(order, 1):
        total += q[i]
        if enough(total):
            return order[:n]
    return order


CHAINS = [
    Params(),
    Params(temperature=0.7, top_k=12),
    Params(top_p=0.8),
    Params(min_p=0.1),
    Params(typical_p=0.6),
    Params(top_k=30, typical_p=0.9, top_p=0.9, min_p=0.02, temperature=1.4),
    Params(repeat_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.5, repeat_last_n=8),
    Params(repeat_penalty=1.4, repeat_last_n=-1, top_k=9),
    Params(logit_bias={3: 4.0, 5: -100.0}, top_p=0.95),
]
IDS = [1, 2, 3, 2, 5, 7, 3, 2, 11, 3, 2]


@pytest.mark.parametrize("p", CHAINS, ids=str)
def test_draws_follow_the_plain_chain(p: Params) -> None:
    """Chi-square at one in ten thousand, and nothing that the filters leave out is ever drawn."""
    logits = np.random.default_rng(3).normal(size=60).astype(np.float32) * 2
    expected = plain(logits, IDS, p)
    n = 6000
    drawn = Counter(
        Sampler(replace(p, seed=seed)).choose(logits, IDS, None).id for seed in range(n)
    )
    assert set(drawn) <= set(expected)
    common = [i for i, c in expected.items() if c * n >= 5]
    rest = 1 - sum(expected[i] for i in common)
    observed = [*(drawn[i] for i in common), n - sum(drawn[i] for i in common)]
    wanted = [*(expected[i] * n for i in common), max(rest * n, 1e-9)]
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted) if w > 1)
    freedom = max(len(common), 1)
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 12


@given(
    st.integers(2, 3000),
    st.integers(1, 200),
    st.integers(0, 2**32),
    st.sampled_from(["normal", "ties", "infinite"]),
)
@settings(deadline=None, max_examples=80)
def test_top_finds_the_largest_in_order(n: int, k: int, seed: int, kind: str) -> None:
    x = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    if kind == "infinite":
        x[::3] = -np.inf
    rows = top(x, k)
    assert len(rows) == min(k, n) == len(set(rows.tolist()))
    assert (x[rows] == np.sort(x)[::-1][:k]).all()


@pytest.mark.parametrize("n", [5, 1000, 5000, 151936])
def test_a_draw_walks_the_cumulative_sum(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n).astype(np.float32) * 2
    x[1] = -np.inf
    ends = np.cumsum(np.exp(x.astype(np.float64)))
    for u in (0.0, 0.001, 0.25, 0.5, 0.9, 0.999, 1 - 2**-53):
        i = draw(x, u)
        slack = ends[-1] * 1e-4  # sums of float32 groups
        assert ends[i] + slack >= u * ends[-1] >= ends[i] - np.exp(x[i]) - slack
        assert i != 1


def test_numbers_are_uniform_and_depend_on_seed_place_and_stream() -> None:
    u = np.array([uniform(7, i, 0) for i in range(20000)])
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert np.histogram(u, 20, (0, 1))[0].min() > 850
    assert len({uniform(s, n, t) for s in range(9) for n in range(9) for t in range(2)}) == 162


def test_temperature_zero_takes_the_likeliest_and_bias_can_forbid_it() -> None:
    logits = np.array([0.0, 3.0, 2.0, 1.0], np.float32)
    assert Sampler(Params(temperature=0)).choose(logits, [], None).id == 1
    assert Sampler(Params(temperature=0, logit_bias={1: -9})).choose(logits, [], None).id == 2
    assert logits.tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize("p", [Params(temperature=0), Params(top_k=2), Params(mirostat_tau=3.0)])
def test_a_mask_is_never_left(p: Params) -> None:
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)
    mask = np.zeros(500, np.bool_)
    mask[[7, 9, 400]] = True
    chosen = {Sampler(replace(p, seed=s)).choose(logits, [7, 9], mask).id for s in range(40)}
    assert chosen <= {7, 9, 400}


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = np.random.default_rng(1).normal(size=300).astype(np.float32)
    p = Params(temperature=0, logit_bias={int(logits.argmax()): -50.0}, logprobs=3)
    chosen = Sampler(p).choose(logits, [], None)
    raw = np.log(np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum())
    best = np.argsort(-logits)
    assert chosen.id == best[1]
    assert chosen.logprob == pytest.approx(raw[best[1]], abs=1e-5)
    assert [i for i, _ in chosen.top] == best[:3].tolist()
    assert [v for _, v in chosen.top] == pytest.approx(raw[best[:3]].tolist(), abs=1e-5)


def test_xtc_leaves_out_the_top_choices_but_the_last_of_them() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04])).astype(np.float32)
    always = Params(xtc_probability=1.0, xtc_threshold=0.15)
    drawn = {Sampler(replace(always, seed=s)).choose(logits, [], None).id for s in range(300)}
    assert drawn == {2, 3, 4}
    sometimes = Params(xtc_probability=0.5, xtc_threshold=0.15, temperature=0)
    greedy = [Sampler(replace(sometimes, seed=s)).choose(logits, [], None).id for s in range(400)]
    assert set(greedy) == {0, 2} and 140 < greedy.count(0) < 260


def test_dry_punishes_what_would_continue_a_repetition() -> None:
    p = Params(dry_multiplier=1.0, dry_base=2.0, dry_allowed_length=2)
    # a b c c b c y a b c: after (a b c) came c, after (b c) came y, after (c) came b
    assert dry([1, 2, 3, 3, 2, 3, 9, 1, 2, 3], p) == {3: 2.0, 9: 1.0}
    assert dry([1, 2, 3, 3, 2, 3, 9, 1, 2, 3], replace(p, dry_breakers=frozenset([1]))) == {
        3: 1.0,
        9: 1.0,
    }
    assert dry([1, 2, 1, 2, 7], replace(p, dry_breakers=frozenset([7]))) == {}


def test_mirostat_steers_the_surprise_to_its_target() -> None:
    """What a step observes is the surprise among what was left, as mirostat 2 has it."""
    rng = np.random.default_rng(5)
    for tau in (2.0, 5.0):
        sampler, seen = Sampler(Params(mirostat_tau=tau, seed=3)), []
        for i in range(600):
            before = sampler.mu
            logits = rng.normal(size=2000).astype(np.float32) * 3
            token = sampler.choose(logits, [0] * i, None).id
            p = np.exp(logits.astype(float))
            p /= p.sum()
            assert p[token] >= 2**-before * 0.999 or token == p.argmax()
            kept = p[p >= 2**-before].sum() or p[token]
            seen.append(-math.log2(p[token] / kept))
            assert sampler.mu == pytest.approx(before - 0.1 * (seen[-1] - tau), abs=1e-3)
        assert abs(np.mean(seen[100:]) - tau) < 0.25


class Peer:
    """llama.cpp's samplers on an array of candidates."""

    def __init__(self) -> None:
        self.lib: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

    def apply(self, make: list[Any], logits: np.ndarray, accepted: list[int]) -> dict[int, float]:
        data = (self.lib.llama_token_data * len(logits))()
        for i, logit in enumerate(logits):
            data[i].id, data[i].logit, data[i].p = i, float(logit), 0.0
        array = self.lib.llama_token_data_array(data, len(logits), -1, False)
        for sampler in make:
            for token in accepted:
                self.lib.llama_sampler_accept(sampler, token)
            self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
            self.lib.llama_sampler_free(sampler)
        return {array.data[i].id: array.data[i].logit for i in range(array.size)}


@pytest.mark.peer
def test_filters_keep_what_llama_cpp_keeps() -> None:
    peer, rng = Peer(), np.random.default_rng(8)
    lib = peer.lib
    for _ in range(40):
        logits = rng.normal(size=300).astype(np.float32) * rng.uniform(0.5, 4)
        k, typ = int(rng.integers(1, 200)), float(rng.uniform(0.2, 1))
        mass, least = float(rng.uniform(0.2, 1)), float(rng.uniform(0, 0.3))
        kept = peer.apply(
            [
                lib.llama_sampler_init_top_k(k),
                lib.llama_sampler_init_typical(typ, 0),
                lib.llama_sampler_init_top_p(mass, 0),
                lib.llama_sampler_init_min_p(least, 0),
            ],
            logits,
            [],
        )
        ours = plain(logits, [], Params(top_k=k, typical_p=typ, top_p=mass, min_p=least))
        p = Params(top_k=k, typical_p=typ, top_p=mass, min_p=least, temperature=1.0)
        assert set(ours) == set(kept)
        drawn = {Sampler(replace(p, seed=s)).choose(logits, [], None).id for s in range(50)}
        assert drawn <= set(kept)


@pytest.mark.peer
def test_penalties_change_logits_as_llama_cpp_does() -> None:
    peer, rng = Peer(), np.random.default_rng(9)
    for _ in range(30):
        logits = rng.normal(size=80).astype(np.float32) * 3
        ids = rng.integers(0, 80, int(rng.integers(1, 120))).tolist()
        last, repeat = int(rng.integers(1, 90)), float(rng.uniform(0.8, 1.6))
        frequency, presence = float(rng.uniform(0, 1)), float(rng.uniform(0, 1))
        make = peer.lib.llama_sampler_init_penalties(80, last, repeat, frequency, presence)
        theirs = peer.apply([make], logits, ids)
        p = Params(
            repeat_penalty=repeat,
            repeat_last_n=last,
            frequency_penalty=frequency,
            presence_penalty=presence,
        )
        changes = Sampler(p)._changes(logits, ids)
        ours = [changes.get(i, float(x)) for i, x in enumerate(logits)]
        assert ours == pytest.approx([theirs[i] for i in range(80)], abs=2e-6)
