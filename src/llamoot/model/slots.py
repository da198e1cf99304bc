"""Where the states of recurrent layers lie: one slot for each sequence that is running.

A sequence is known by its first cache block, which it keeps as long as it runs. A slot is taken
from the sequence that has waited longest; the kernels clear a state at position 0.
"""

from llamoot.kernels.step import Step
from llamoot.model.config import Config
from llamoot.model.layers import Layer
from llamoot.model.tensors import conv_channels


def state_shapes(config: Config, layer: Layer) -> dict[str, tuple[int, ...]]:
    """Shapes of one slot of a layer's states, by name; none for a layer without."""
    m, kind = config.ssm, config.traits.recurrent
    if not layer.recurrent:
        return {}
    shapes: dict[str, tuple[int, ...]] = {"conv": (m.taps - 1, conv_channels(config, layer))}
    if kind == "mamba":
        shapes["scan"] = (m.inner, 1, m.state)
    elif kind in ("mamba2", "delta", "kda"):
        shapes["scan"] = (m.heads, m.inner // m.heads, m.state)
    return shapes


class Slots:
    """Slots by first block, the longest unused one first."""

    def __init__(self, n_slots: int) -> None:
        self._n, self._held = n_slots, dict[int, int]()

    def assign(self, step: Step) -> None:
        """Fill `step.slot` for the sequences of this step."""
        firsts = [int(step.table[seq, 0]) for seq in range(step.n_seqs)]
        assert len(set(firsts)) == len(firsts), "sequences with a state cannot share blocks"
        for first in firsts:  # those of this step become the ones used last
            if first in self._held:
                self._held[first] = self._held.pop(first)
        for seq, first in enumerate(firsts):
            if first not in self._held:
                start = int(step.pos[step.first[seq]])
                assert start == 0, "the state of this sequence is no longer there"
                self._held[first] = self._free()
            step.slot[seq] = self._held[first]

    def _free(self) -> int:
        if len(self._held) < self._n:
            return len(self._held)
        return self._held.pop(next(iter(self._held)))
