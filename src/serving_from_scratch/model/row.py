"""Lays out the tokens of one step in a flat row, and describes the row to attention."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from serving_from_scratch.core.step import Chunk, Step


@dataclass(frozen=True)
class Group:
    """Neighbouring chunks of the same number of tokens, which attention computes together.

    All single tokens (decoding) form one group. Every longer chunk is its own group.

    Attributes:
        chunks: n chunks of m tokens each.
        first: index of the first chunk among the row's chunks.
        rows: the n * m positions of their tokens in the row.
    """

    chunks: tuple[Chunk, ...]
    first: int
    rows: slice

    @property
    def tokens(self) -> int:
        """m, the number of tokens of each chunk."""
        return len(self.chunks[0].tokens)

    @cached_property
    def length(self) -> int:
        """The longest sequence of the group, in tokens."""
        return max(chunk.end for chunk in self.chunks)

    @property
    def causal(self) -> bool:
        """Whether the group is one text from its beginning: attention's mask is a triangle."""
        return len(self.chunks) == 1 and self.chunks[0].start == 0

    @cached_property
    def mask(self) -> Tensor:
        """Which keys each token may see: n x 1 x m x length, true if it may."""
        starts = torch.tensor([chunk.start for chunk in self.chunks])
        positions = starts[:, None] + torch.arange(self.tokens)
        return (torch.arange(self.length) <= positions[..., None])[:, None]


class Row:
    """The tokens of a step, one after the other.

    Attributes:
        chunks: the step's chunks in the row's order: single tokens first, by slot.
        order: the index in the step of each chunk of the row.
        ids: the tokens.
        positions: of each token in its own text.
        groups: the groups that attention computes together.
    """

    def __init__(self, step: Step) -> None:
        def place(index: int) -> tuple[bool, int]:
            chunk = step.chunks[index]
            return len(chunk.tokens) > 1, chunk.slot

        self.order = sorted(range(len(step.chunks)), key=place)
        self.chunks = tuple(step.chunks[index] for index in self.order)
        self.ids = torch.tensor([id for chunk in self.chunks for id in chunk.tokens])
        self.positions = torch.cat([torch.arange(c.start, c.end) for c in self.chunks])
        self.groups = self._groups()

    @cached_property
    def ends(self) -> list[int]:
        """The index in the row of each chunk's last token."""
        lengths = torch.tensor([len(chunk.tokens) for chunk in self.chunks])
        return (lengths.cumsum(0) - 1).tolist()

    def per_token(self, values: list[int]) -> Tensor:
        """Repeats one value per chunk for each of its tokens."""
        lengths = torch.tensor([len(chunk.tokens) for chunk in self.chunks])
        return torch.tensor(values).repeat_interleave(lengths)

    def _groups(self) -> tuple[Group, ...]:
        single = tuple(chunk for chunk in self.chunks if len(chunk.tokens) == 1)
        groups = [Group(single, 0, slice(0, len(single)))] if single else []
        row = len(single)
        for first, chunk in enumerate(self.chunks[row:], len(single)):
            groups.append(Group((chunk,), first, slice(row, row + len(chunk.tokens))))
            row += len(chunk.tokens)
        return tuple(groups)
