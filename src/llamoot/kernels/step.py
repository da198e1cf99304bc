"""The step header: all that changes from one step of the engine to the next.

The tape is recorded once; at run time every kernel reads from here how many tokens there are,
where they stand and where their cache lies. One step is a *ragged batch*: the tokens of one
sequence lie side by side in ascending position, sequences follow one another.
Arrays are allocated once at full capacity, so their addresses never change.
"""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

BLOCK = 32  # tokens in one block of the cache

# Words of the header, in order; kernels index it with these numbers.
N_TOKENS, N_OUTPUTS, N_SEQS, N_LOGITS = range(4)
HEAD_WORDS = 16


class Step:
    """One ragged batch. `head[N_TOKENS]` and its kind say how much of each array is alive."""

    def __init__(
        self, max_tokens: int, max_seqs: int, max_blocks: int, max_outputs: int = 0
    ) -> None:
        """`max_blocks` is the largest number of cache blocks of one sequence.

        `max_outputs` rows of logits fit at once (0: as many as tokens): a row is as long as the
        vocabulary, so room for every token of a batch would be most of the working memory.
        """
        self.max_tokens, self.max_seqs, self.max_blocks = max_tokens, max_seqs, max_blocks
        self.max_outputs = max_outputs or max_tokens
        self.head = np.zeros(HEAD_WORDS, np.int64)
        self.tokens: Ints = np.zeros(max_tokens, np.int32)  # token ids
        self.pos: Ints = np.zeros(max_tokens, np.int32)  # position of each in its sequence
        self.seq: Ints = np.zeros(max_tokens, np.int32)  # row of `table` it belongs to
        self.out: Ints = np.zeros(max_tokens, np.int32)  # batch rows whose logits are wanted
        self.table: Ints = np.zeros((max_seqs, max_blocks), np.int32)  # cache blocks, in order
        self.length: Ints = np.zeros(max_seqs, np.int32)  # positions in the cache after this step
        self.first: Ints = np.zeros(max_seqs + 1, np.int32)  # batch row where a sequence begins
        self.slot: Ints = np.zeros(max_seqs, np.int32)  # where recurrent layers keep its state

    @property
    def n_tokens(self) -> int:
        return int(self.head[N_TOKENS])

    @property
    def n_outputs(self) -> int:
        return int(self.head[N_OUTPUTS])

    @property
    def n_logits(self) -> int:
        """Outputs whose logits are computed: all of them, or none when only hidden rows count."""
        return int(self.head[N_LOGITS])

    @property
    def n_seqs(self) -> int:
        return int(self.head[N_SEQS])

    def want_logits(self, wanted: bool) -> None:
        """Compute logits of the outputs, or leave them out."""
        self.head[N_LOGITS] = self.n_outputs if wanted else 0

    def clear(self) -> None:
        """Forget the batch."""
        self.head[:] = 0
        self.first[0] = 0

    def add(
        self, tokens: "list[int] | Ints", start: int, blocks: "list[int] | Ints", outputs: str
    ) -> None:
        """Append one sequence: `tokens` at positions start, start+1, … in the cache `blocks`.

        `outputs` is which of them want logits: "last", "all" or "none".
        """
        n, row, seq = len(tokens), self.n_tokens, self.n_seqs
        assert n > 0 and row + n <= self.max_tokens and seq < self.max_seqs
        assert (start + n + BLOCK - 1) // BLOCK <= len(blocks) <= self.max_blocks
        self.tokens[row : row + n] = tokens
        self.pos[row : row + n] = np.arange(start, start + n)
        self.seq[row : row + n] = seq
        self.table[seq, : len(blocks)] = blocks
        self.length[seq] = start + n
        self.first[seq + 1] = row + n
        wanted = {"last": range(row + n - 1, row + n), "all": range(row, row + n), "none": ()}
        for out in wanted[outputs]:
            self.out[self.n_outputs] = out
            self.head[N_OUTPUTS] += 1
        self.head[N_TOKENS] += n
        self.head[N_LOGITS] = min(self.n_outputs, self.max_outputs)
        self.head[N_SEQS] += 1
