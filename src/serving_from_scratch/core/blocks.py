"""Manages the pages of the cache: free blocks, reference counts, and shared beginnings."""

import hashlib
from array import array

from serving_from_scratch.core.request import Sequence
from serving_from_scratch.core.step import Copy


class BlockManager:
    """Hands out blocks of the cache.

    A shared block is free when its last sequence has given it back. A free block keeps its content,
    and can be found by its digest, until it is handed out again.
    """

    def __init__(self, count: int) -> None:
        self.references = [0] * count
        self._free = dict.fromkeys(range(count))  # the longest unused first
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        """Hands out the block that was unused for the longest time; forgets its content."""
        block = next(iter(self._free))
        del self._free[block]
        self._blocks.pop(self._digests.pop(block, b""), None)
        self.references[block] = 1
        return block

    def share(self, digest: bytes) -> int | None:
        """Hands out the block with this content; None if there is none."""
        block = self._blocks.get(digest)
        if block is not None:
            self._free.pop(block, None)
            self.references[block] += 1
        return block

    def remember(self, block: int, digest: bytes) -> None:
        """Makes a block findable by its content; of equal blocks, the first counts."""
        if digest not in self._blocks and block not in self._digests:
            self._blocks[digest], self._digests[block] = block, digest

    def give_back(self, block: int) -> None:
        """Drops one reference to a block."""
        self.references[block] -= 1
        if not self.references[block]:
            self._free[block] = None

    def forget(self) -> None:
        """Forgets the content of all blocks."""
        self._blocks.clear()
        self._digests.clear()


class Pages:
    """A `Memory` of blocks: sequences take what they need, and equal beginnings share blocks.

    Args:
        count: number of blocks.
        block_tokens: tokens per block.
        prefixes: whether equal beginnings share their blocks.
        longest: the longest sequence in tokens; None: all blocks.
    """

    keeps = True

    def __init__(
        self, count: int, block_tokens: int = 16, prefixes: bool = False, longest: int | None = None
    ) -> None:
        self.manager = BlockManager(count)
        self.block_tokens = block_tokens
        self.capacity = min(count * block_tokens, longest or count * block_tokens)
        self.prefixes = prefixes

    @property
    def free_tokens(self) -> int:
        return self.manager.free * self.block_tokens

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        self._share(sequence)
        if not self.grow(sequence, min(tokens, sequence.pending)):
            self.release(sequence)
            return False
        sequence.slot = sequence.blocks[0]
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        needed = -(-(sequence.computed + tokens) // self.block_tokens) - len(sequence.blocks)
        if needed > self.manager.free:
            return False
        sequence.blocks.extend(self.manager.take() for _ in range(needed))
        return True

    def advance(self, sequence: Sequence, computed: int) -> None:
        first = sequence.computed // self.block_tokens
        sequence.computed = computed
        if self.prefixes:
            full = digests(sequence.tokens[:computed], self.block_tokens)
            for block, digest in list(zip(sequence.blocks, full, strict=False))[first:]:
                self.manager.remember(block, digest)

    def release(self, sequence: Sequence) -> None:
        # Backwards, so that blocks of a beginning, which others may share, are reused last.
        for block in reversed(sequence.blocks):
            self.manager.give_back(block)
        sequence.blocks.clear()
        sequence.slot, sequence.computed = None, 0

    def take_copies(self) -> tuple[Copy, ...]:
        return ()

    def forget(self) -> None:
        self.manager.forget()

    def _share(self, sequence: Sequence) -> None:
        """Takes the blocks of the longest known beginning, except the block of the last token."""
        if not self.prefixes or sequence.request.sampling.prompt_logprobs is not None:
            return
        for digest in digests(sequence.tokens[:-1], self.block_tokens):
            block = self.manager.share(digest)
            if block is None:
                break
            sequence.blocks.append(block)
        sequence.computed = len(sequence.blocks) * self.block_tokens


def digests(tokens: list[int], block_tokens: int) -> list[bytes]:
    """Computes a digest of each full block and all tokens before it.

    It is a chain of SHA-256, so different beginnings never have the same digest.
    """
    found, digest = [], b""
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = array("q", tokens[start : start + block_tokens]).tobytes()
        digest = hashlib.sha256(digest + block).digest()
        found.append(digest)
    return found
