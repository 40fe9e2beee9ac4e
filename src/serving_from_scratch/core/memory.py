"""Gives sequences their places in the cache. The tensors belong to the model."""

from typing import Protocol

from serving_from_scratch.core.request import Sequence
from serving_from_scratch.core.step import Copy


class Memory(Protocol):
    """Gives sequences their places in the cache.

    Attributes:
        capacity: the longest sequence, in tokens.
        keeps: whether computed tokens are kept.
        free_tokens: how many more tokens fit.
    """

    capacity: int
    keeps: bool

    @property
    def free_tokens(self) -> int: ...

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        """Gives a waiting sequence a place with room for its next tokens; False if there is none.

        Tokens of the sequence that the cache already holds count as computed.
        """

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Makes room for the next tokens of a running sequence; False if there is none."""

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Records that the first `computed` tokens are in the cache."""

    def release(self, sequence: Sequence) -> None:
        """Takes the place back."""

    def take_copies(self) -> tuple[Copy, ...]:
        """Returns the copies that the next step must make first; each is returned once."""

    def forget(self) -> None:
        """Forgets the content of the cache, because its process was restarted."""


class PrefixStore:
    """Knows which tokens each slot holds, even after its sequence has ended."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[list[int], int]] = {}

    def note(self, slot: int, tokens: list[int], computed: int) -> None:
        """Records that a slot holds the first `computed` of these tokens."""
        self._held[slot] = (tokens, computed)

    def longest(self, tokens: list[int]) -> tuple[int | None, int]:
        """Finds the slot with the longest common beginning, and the beginning's length in tokens.

        The text's last token never counts: it must be computed to find the next token.
        """
        best: tuple[int | None, int] = (None, 0)
        for slot, (held, computed) in self._held.items():
            length = common_prefix(tokens[:-1], held[:computed])
            if length > best[1]:
                best = (slot, length)
        return best

    def forget(self) -> None:
        self._held.clear()


class Slots:
    """Gives every sequence one contiguous slot for the longest possible sequence.

    Args:
        places: number of slots.
        capacity: tokens per slot.
        prefixes: whether to copy equal beginnings from other slots instead of computing them.
        shortest: the shortest beginning that is worth a copy, in tokens.
    """

    keeps = True

    def __init__(
        self, places: int, capacity: int, prefixes: bool = False, shortest: int = 16
    ) -> None:
        self.capacity = capacity
        self.shortest = shortest
        self.prefixes = PrefixStore() if prefixes else None
        self._free = list(range(places))  # the longest unused first
        self._copies: list[Copy] = []

    @property
    def free_tokens(self) -> int:
        return len(self._free) * self.capacity

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        if not self._free:
            return False
        source, length = self._prefix(sequence)
        if source in self._free:  # reuses the slot of an ended sequence
            self._free.remove(source)
            sequence.slot = source
        else:
            sequence.slot = self._free.pop(0)
            if source is not None:
                self._copies.append(Copy(source, sequence.slot, length))
        self.advance(sequence, length)
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        return True

    def advance(self, sequence: Sequence, computed: int) -> None:
        sequence.computed = computed
        if self.prefixes:
            self.prefixes.note(sequence.slot, sequence.tokens, computed)

    def release(self, sequence: Sequence) -> None:
        self._free.append(sequence.slot)
        sequence.slot, sequence.computed = None, 0

    def take_copies(self) -> tuple[Copy, ...]:
        copies, self._copies = tuple(self._copies), []
        return copies

    def forget(self) -> None:
        self._copies.clear()
        if self.prefixes:
            self.prefixes.forget()

    def _prefix(self, sequence: Sequence) -> tuple[int | None, int]:
        if not self.prefixes or sequence.request.sampling.prompt_logprobs is not None:
            return None, 0
        source, length = self.prefixes.longest(sequence.tokens)
        return (source, length) if length >= self.shortest else (None, 0)


class NoMemory(Slots):
    """Keeps nothing: every step computes whole texts. Its slots only number the sequences."""

    keeps = False

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Keeps `computed` at 0."""


def common_prefix(first: list[int], second: list[int]) -> int:
    """Counts the tokens with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
