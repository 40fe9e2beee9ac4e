"""Who holds which part of the cache. The tensors themselves belong to the model."""

from typing import Protocol

from serving_from_scratch.core.request import Sequence
from serving_from_scratch.core.step import Copy


class Memory(Protocol):
    """Gives sequences their places in the cache.

    Attributes:
        capacity: the longest sequence it can hold, in tokens.
        keeps: whether computed tokens need not be computed again.
        free_tokens: how many tokens it could still hold.
    """

    capacity: int
    keeps: bool

    @property
    def free_tokens(self) -> int: ...

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        """Gives a waiting sequence a place with room for its next tokens, or says there is none.

        What the cache holds of the sequence already counts as computed from now on.
        """

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Makes room for the next tokens of a running sequence, or says there is none."""

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Notes that the first `computed` tokens are in the cache."""

    def release(self, sequence: Sequence) -> None:
        """Takes the place back."""

    def take_copies(self) -> tuple[Copy, ...]:
        """Returns what the next step must copy first; each copy once."""

    def forget(self) -> None:
        """Trusts nothing that the cache holds: its process was restarted."""


class NoMemory:
    """Remembers nothing: every step computes whole texts."""

    keeps = False

    def __init__(self, places: int, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(places))

    @property
    def free_tokens(self) -> int:
        return len(self._free) * self.capacity

    def admit(self, sequence: Sequence, tokens: int) -> bool:
        if not self._free:
            return False
        sequence.slot, sequence.computed = self._free.pop(), 0
        return True

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        return True

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Keeps `computed` at 0."""

    def release(self, sequence: Sequence) -> None:
        self._free.append(sequence.slot)
        sequence.slot, sequence.computed = None, 0

    def take_copies(self) -> tuple[Copy, ...]:
        return ()

    def forget(self) -> None:
        """Holds nothing that could be wrong."""


class PrefixStore:
    """Knows which tokens each slot holds, also after its sequence has ended."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[list[int], int]] = {}

    def note(self, slot: int, tokens: list[int], computed: int) -> None:
        """Notes that a slot holds the first `computed` of these tokens."""
        self._held[slot] = (tokens, computed)

    def longest(self, tokens: list[int]) -> tuple[int | None, int]:
        """Finds the slot that holds the longest beginning of a text, and its length in tokens.

        The text's last token never counts: it must be computed to find the next one.
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
    """Gives every sequence one contiguous slot, as long as the longest sequence.

    Args:
        places: how many slots.
        capacity: tokens a slot.
        prefixes: copies what another slot holds of the same beginning instead of computing it.
        shortest: prefixes below this number of tokens are not worth a copy.
    """

    keeps = True

    def __init__(
        self,
        places: int,
        capacity: int,
        prefixes: bool = False,
        shortest: int = 16,
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
        if source in self._free:  # goes on in the slot of a sequence that has ended
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


def common_prefix(first: list[int], second: list[int]) -> int:
    """Counts the tokens with which both texts begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
