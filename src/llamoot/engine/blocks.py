"""Bookkeeping of the paged cache: integers only, no array is touched here.

A block holds the keys and values of `size` positions. Blocks are counted, shared and found again:

- a full block is known by the digest of its tokens and of everything before them (`_full`), from
  the moment it is promised, so that a second sequence with the same prompt waits for the first
  instead of computing it again;
- a block that is only partly filled is found through its parent's digest (`_children`) and
  copied, so that a prefix is reused to the token and not only to the block;
- blocks of ended sequences stay findable until memory is needed; the one unused longest goes first.

`copies` collects (source, target) pairs that the engine must carry out, in order, before the next
forward pass.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

NOBODY = -1


class Holder(Protocol):
    """What the bookkeeping needs to know of a sequence."""

    id: int
    space: bytes  # sequences of different spaces (adapters) never share
    ids: list[int]  # every token known so far
    blocks: list[int]
    digests: list[bytes]  # of the full blocks, in order
    n_done: int  # positions of `ids` whose keys and values are in the cache
    n_cached: int  # of those, how many were found and not computed


@dataclass(slots=True)
class Block:
    """`tokens` are those whose keys and values are valid."""

    refs: int = 0
    tokens: list[int] = field(default_factory=list)
    parent: bytes = b""
    digest: bytes = b""  # set while registered as a full (or promised) block
    writer: int = NOBODY  # sequence that is computing it


def digest(parent: bytes, tokens: list[int]) -> bytes:
    """Name of a full block: its tokens and everything before them."""
    return blake2b(array("i", tokens).tobytes(), key=parent, digest_size=16).digest()


class Blocks:
    """A pool of `n_blocks` blocks of `size` positions."""

    def __init__(self, n_blocks: int, size: int, reuse: bool = True) -> None:
        """Without `reuse` nothing is shared or found again: for models whose state is not in
        the blocks alone."""
        self.size, self.reuse = size, reuse
        self.blocks = [Block() for _ in range(n_blocks)]
        self.copies: list[tuple[int, int]] = []
        self._unused = list(range(n_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # known content, nobody's; oldest first
        self._full: dict[bytes, int] = {}
        self._children: dict[bytes, dict[int, None]] = {}

    @property
    def n_free(self) -> int:
        """Blocks that can be had at once, those with reusable content included."""
        return len(self._unused) + len(self._idle)

    def needed(self, n_positions: int) -> int:
        """How many blocks `n_positions` take."""
        return -(-n_positions // self.size)

    def admit(self, seq: Holder, spare: int = 0) -> bool:
        """Give a sequence blocks for all its tokens, found ones first; False if too few.

        `spare` blocks are to stay free, for those who are running already.
        """
        seq.digests = self._digests(seq)
        found = []
        for name in seq.digests if self.reuse else ():
            if name not in self._full:
                break
            found.append(self._full[name])
        for block in found:
            self._hold(block)
        source, n_same = self._closest(seq, len(found)) if self.reuse else (NOBODY, 0)
        if n_same:
            self._hold(source)  # not to be taken away while room is made
        missing = self.needed(len(seq.ids)) - len(found)
        enough = missing + spare <= self.n_free
        if enough:
            seq.blocks = found + [self._promise(seq, len(found) + i) for i in range(missing)]
            seq.n_done = 0
            if n_same:
                self._copy(source, seq.blocks[len(found)], n_same)
            self.advance(seq)
        else:
            for block in reversed(found):
                self._drop(block)
        if n_same:
            self._drop(source)
        return enough

    def advance(self, seq: Holder) -> None:
        """Move over positions that are in the cache already, up to the last token but one."""
        last = len(seq.ids) - 1  # the last is always computed: its logits are wanted
        before = seq.n_done
        while seq.n_done < last:
            index = seq.n_done // self.size
            ready = index * self.size + len(self.blocks[seq.blocks[index]].tokens)
            if ready <= seq.n_done:
                break
            seq.n_done = min(ready, last)
        seq.n_cached += seq.n_done - before

    def must_wait(self, seq: Holder) -> bool:
        """Whether somebody else is computing what this sequence needs next."""
        index = seq.n_done // self.size
        if index >= len(seq.blocks):
            return False
        return self.blocks[seq.blocks[index]].writer not in (NOBODY, seq.id)

    def n_unclaimed(self, seq: Holder, n: int) -> int:
        """How many of the next `n` positions lie before a block that somebody else computes."""
        first = seq.n_done // self.size
        for index in range(first, min(self.needed(seq.n_done + n), len(seq.blocks))):
            if self.blocks[seq.blocks[index]].writer not in (NOBODY, seq.id):
                return max(0, index * self.size - seq.n_done)
        return n

    def reserve(self, seq: Holder, n: int) -> bool:
        """Make the next `n` positions writable by this sequence; False if blocks are too few."""
        first, stop = seq.n_done // self.size, self.needed(seq.n_done + n)
        shared = [i for i in range(first, min(stop, len(seq.blocks))) if self._is_shared(seq, i)]
        if len(shared) + max(0, stop - len(seq.blocks)) > self.n_free:
            return False
        for index in shared:
            old = seq.blocks[index]
            seq.blocks[index] = self._take()
            self._copy(old, seq.blocks[index], seq.n_done - index * self.size)
            self._drop(old)
        while len(seq.blocks) < stop:
            seq.blocks.append(self._take())
        for index in range(first, stop):
            self.blocks[seq.blocks[index]].writer = seq.id
        return True

    def wrote(self, seq: Holder, n: int) -> None:
        """The next `n` tokens of the sequence are in the cache now."""
        first = seq.n_done // self.size
        seq.n_done += n
        for index in range(first, self.needed(seq.n_done)):
            start = index * self.size
            number = seq.blocks[index]
            block = self.blocks[number]
            if not block.tokens:
                block.parent = self._parent(seq, index)
                self._children.setdefault(block.parent, {})[number] = None
            block.tokens = seq.ids[start : min(start + self.size, seq.n_done)]
            if len(block.tokens) == self.size:
                self._complete(seq, index)
        for number in seq.blocks[first:]:
            if self.blocks[number].writer == seq.id:
                self.blocks[number].writer = NOBODY

    def fork(self, seq: Holder, child: Holder) -> None:
        """Let `child` continue from where `seq` stands; shared blocks are copied when written."""
        child.blocks, child.digests = list(seq.blocks), list(seq.digests)
        child.n_done = child.n_cached = seq.n_done
        for block in child.blocks:
            self.blocks[block].refs += 1

    def release(self, seq: Holder) -> None:
        """Take the sequence's blocks back; what they hold stays findable while there is room."""
        for number in reversed(seq.blocks):  # the end of a prefix is forgotten before its start
            if self.blocks[number].writer == seq.id:
                self.blocks[number].writer = NOBODY
            self._drop(number)
        seq.blocks = []
        seq.digests = []
        seq.n_done = 0

    def _digests(self, seq: Holder) -> list[bytes]:
        names: list[bytes] = []
        for stop in range(self.size, len(seq.ids) + 1, self.size):
            parent = names[-1] if names else seq.space
            names.append(digest(parent, seq.ids[stop - self.size : stop]))
        return names

    def _parent(self, seq: Holder, index: int) -> bytes:
        return seq.digests[index - 1] if index else seq.space

    def _closest(self, seq: Holder, index: int) -> tuple[int, int]:
        """The block that shares most tokens with the sequence's block `index`, and how many."""
        wanted = seq.ids[index * self.size : (index + 1) * self.size]
        best = (NOBODY, 0)
        for number in self._children.get(self._parent(seq, index), ()):
            n = 0
            for ours, theirs in zip(wanted, self.blocks[number].tokens):
                if ours != theirs:
                    break
                n += 1
            if n > best[1]:
                best = (number, n)
        return best

    def _promise(self, seq: Holder, index: int) -> int:
        """A fresh block for `index`, announced to others when the prompt fills it."""
        number = self._take()
        if self.reuse and index < len(seq.digests):
            block = self.blocks[number]
            block.digest = seq.digests[index]
            self._full[block.digest] = number
        return number

    def _complete(self, seq: Holder, index: int) -> None:
        number = seq.blocks[index]
        block = self.blocks[number]
        if index == len(seq.digests):
            seq.digests.append(digest(block.parent, block.tokens))
        name = seq.digests[index]
        if self.reuse and self._full.setdefault(name, number) == number:
            block.digest = name

    def _is_shared(self, seq: Holder, index: int) -> bool:
        """Whether writing block `index` would change what others read."""
        block = self.blocks[seq.blocks[index]]
        promised = bool(block.digest) and len(block.tokens) < self.size
        return block.refs > 1 and not promised

    def _copy(self, source: int, target: int, n: int) -> None:
        """Note that the first `n` positions of `target` come from `source`."""
        if n == 0:
            return
        old, new = self.blocks[source], self.blocks[target]
        self.copies.append((source, target))
        new.tokens, new.parent = old.tokens[:n], old.parent
        self._children.setdefault(new.parent, {})[target] = None

    def _hold(self, number: int) -> None:
        self.blocks[number].refs += 1
        self._idle.pop(number, None)

    def _drop(self, number: int) -> None:
        block = self.blocks[number]
        block.refs -= 1
        if block.refs:
            return
        if self._is_worth_keeping(number):
            self._idle[number] = None
        else:
            self._forget(number)
            self._unused.append(number)

    def _is_worth_keeping(self, number: int) -> bool:
        """Whether the block holds something that no other block of the same parent holds."""
        block = self.blocks[number]
        if not (self.reuse and block.tokens):
            return False
        if block.digest and len(block.tokens) == self.size:
            return True
        n = len(block.tokens)
        return not any(
            other != number and self.blocks[other].tokens[:n] == block.tokens
            for other in self._children[block.parent]
        )

    def _take(self) -> int:
        """A block for somebody: an unused one, or the one whose content was idle longest."""
        if self._unused:
            number = self._unused.pop()
        else:
            number, _ = self._idle.popitem(last=False)
            self._forget(number)
        self.blocks[number].refs = 1
        return number

    def _forget(self, number: int) -> None:
        block = self.blocks[number]
        if block.digest and self._full.get(block.digest) == number:
            del self._full[block.digest]
        if block.tokens:
            siblings = self._children[block.parent]
            del siblings[number]
            if not siblings:
                del self._children[block.parent]
        block.digest, block.tokens, block.parent = b"", [], b""
