"""Counting votes and rankings. Every rule is anonymous (who voted does not matter, only what and
with which weight) and neutral (renaming the candidates renames the result); ties stay ties.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

Ranking = tuple[tuple[str, ...], ...]  # groups of equals, best first; who is missing comes last
_NEAR = 1e-9


def tally(votes: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Candidate → sum of weights, in an order that does not depend on the voters'."""
    parts: dict[str, list[float]] = {}
    for choice, weight in votes:
        parts.setdefault(choice, []).append(weight)
    return {choice: math.fsum(parts[choice]) for choice in sorted(parts)}


def winners(scores: Mapping[str, float]) -> list[str]:
    """All candidates with the highest score, sorted."""
    best = max(scores.values(), default=0.0)
    return sorted(c for c, score in scores.items() if score >= best - _NEAR)


def unassailable(scores: Mapping[str, float], outstanding: float) -> str | None:
    """The candidate that leads by more than all open votes together weigh, if there is one."""
    ahead = sorted(scores.items(), key=lambda item: -item[1])
    if not ahead:
        return None
    second = ahead[1][1] if len(ahead) > 1 else 0.0
    return ahead[0][0] if ahead[0][1] > second + outstanding + _NEAR else None


def borda(ballots: Sequence[tuple[Ranking, frozenset[str]]]) -> dict[str, float]:
    """Mean share of rivals beaten, 0 to 1; ties and missing candidates share their places.

    Each ballot comes with the candidates it could rank, so that a left-out own answer neither
    gains nor loses by it.
    """
    parts: dict[str, list[float]] = {}
    for ranking, rankable in ballots:
        rivals = max(len(rankable) - 1, 1)
        above = 0
        for group in _complete(ranking, rankable):
            places = [len(rankable) - 1 - above - i for i in range(len(group))]
            for candidate in group:
                parts.setdefault(candidate, []).append(sum(places) / len(group) / rivals)
            above += len(group)
    return {c: math.fsum(points) / len(points) for c, points in sorted(parts.items())}


def copeland(ballots: Sequence[tuple[Ranking, frozenset[str]]]) -> dict[str, float]:
    """Duels won minus duels lost, each duel decided by the ballots that could rank both."""
    duels: dict[tuple[str, str], int] = {}
    names: set[str] = set()
    for ranking, rankable in ballots:
        place = {c: i for i, g in enumerate(_complete(ranking, rankable)) for c in g}
        names |= set(place)
        for one in place:
            for other in place:
                won = (place[other] > place[one]) - (place[other] < place[one])
                duels[one, other] = duels.get((one, other), 0) + won
    return {
        one: float(sum((duels.get((one, o), 0) > 0) - (duels.get((one, o), 0) < 0) for o in names))
        for one in sorted(names)
    }


def _complete(ranking: Ranking, rankable: frozenset[str]) -> Ranking:
    groups = [tuple(c for c in group if c in rankable) for group in ranking]
    named = {c for group in groups for c in group}
    rest = tuple(sorted(rankable - named))
    return tuple(group for group in (*groups, rest) if group)


def read_ranking(text: str | bytes, names: Sequence[str]) -> tuple[Ranking, tuple[str, ...]]:
    """The ranking in a ballot of any bytes, and what is wrong with it. Never raises.

    Understood: {"ranking": [["B", "C"], "A"]}, a bare list, {"scores": {"A": 8, "B": "7"}},
    B > A = C, and numbered lines. A name given twice counts where it comes first.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    groups = _from_json(text)
    if groups is None:
        groups = _from_words(text, names)
    problems: list[str] = []
    ranking: list[tuple[str, ...]] = []
    seen: set[str] = set()
    known = {name.casefold(): name for name in names}
    for group in groups:
        good = []
        for item in group:
            name = known.get(re.sub(r"^(?:answer|entry|response)\s+", "", item.strip().casefold()))
            if name is None:
                problems.append(f"unknown label {item[:20]!r}")
            elif name in seen:
                problems.append(f"label {name} given twice")
            else:
                seen.add(name)
                good.append(name)
        if good:
            ranking.append(tuple(good))
    if not ranking:
        problems.append("no label could be read")
    elif len(seen) < len(names):
        problems.append("partial")
    return tuple(ranking), tuple(problems[:8])


def _from_json(text: str) -> list[list[str]] | None:
    for found in reversed(list(re.finditer(r"[\[{]", text))[:50]):
        end = max(text.rfind("]"), text.rfind("}"))
        try:
            value = msgspec.json.decode(text[found.start() : end + 1])
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            continue
        groups = _groups(value)
        if groups:
            return groups
    return None


def _groups(value: Any) -> list[list[str]] | None:
    if isinstance(value, dict):
        value = next((value[k] for k in ("ranking", "order", "scores") if k in value), value)
    if isinstance(value, dict):
        scores: dict[float, list[str]] = {}
        for name, score in value.items():
            try:
                number = float(score)
            except (TypeError, ValueError, OverflowError):
                continue
            if math.isfinite(number):
                scores.setdefault(-number, []).append(str(name))
        return [scores[key] for key in sorted(scores)] or None
    if not isinstance(value, list):
        return None
    return [[str(i) for i in item] if isinstance(item, list) else [str(item)] for item in value]


def _from_words(text: str, names: Sequence[str]) -> list[list[str]]:
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    name = rf"(?:(?:[Aa]nswer|[Ee]ntry|[Rr]esponse)\s+)?\b({either})\b" if either else r"(?!)"
    chains = re.findall(rf"{name}(?:\s*[>=]\s*{name})+", text)
    if chains:
        last = list(re.finditer(rf"{name}(?:\s*[>=]\s*{name})+", text))[-1].group()
        return [re.findall(name, part) for part in last.split(">")]
    lines = re.findall(rf"^\s*\d+[.):]\s*\W*{name}", text, re.M)
    return [[item] for item in lines]
