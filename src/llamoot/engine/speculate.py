"""Guesses at the next tokens from texts the answer probably repeats (prompt look-up).

Where the last tokens occur in one of the texts, what follows them there is guessed to follow here
as well. Several guesses are verified in one forward pass; each is kept only if the sampler, with
the same random number it would have used anyway, chooses that very token. So speculation changes
how fast an answer comes and never what it says.
"""

from collections.abc import Sequence

LONG, SHORT = 3, 2  # tokens that must agree before a text is believed
FEW, MANY = 4, 15  # guesses at first, guesses at most


class Lookup:
    """Where short runs of tokens occur in the texts; the last occurrence wins."""

    def __init__(self, texts: Sequence[list[int]]) -> None:
        self._texts = [list(text) for text in texts]
        self._after: dict[tuple[int, ...], tuple[int, int]] = {}
        for number, text in enumerate(self._texts):
            for stop in range(SHORT, len(text)):
                for n in (SHORT, LONG):
                    if stop >= n:
                        self._after[tuple(text[stop - n : stop])] = (number, stop)
        self._width = FEW
        self._cursor = (0, 0)  # text and place from which the last guess was read

    def guess(self, ids: list[int], most: int) -> list[int]:
        """At most `most` tokens that may follow `ids`; empty where no text agrees."""
        number, place = self._cursor
        if place == 0 or self._texts[number][place - 1 : place] != ids[-1:]:
            found = (self._after.get(tuple(ids[-n:])) for n in (LONG, SHORT))
            number, place = next((f for f in found if f is not None), (0, 0))
        self._cursor = (number, place)
        if place == 0 or most <= 0:
            return []
        return self._texts[number][place : place + min(self._width, most)]

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Of the last guesses `n_right` were kept: believe the texts more, or less."""
        if n_guessed:
            self._width = min(2 * self._width, MANY) if n_right == n_guessed else max(FEW, n_right)
        number, place = self._cursor
        if place:
            self._cursor = (number, place + n_right + 1)
