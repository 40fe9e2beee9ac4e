"""Keeps the keys and values of earlier tokens: not at all, in contiguous slots, or in pages."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.step import Copy
from serving_from_scratch.model.row import Group, Row


@dataclass(frozen=True)
class KVShape:
    """The shape of one token's keys, and of its values: layers x heads x width."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype = torch.float32

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values per token."""
        return 2 * self.layers * self.heads * self.width * self.dtype.itemsize


class KVCache(Protocol):
    """Keeps keys and values; `begin` is called once per step, `write` and `read` once per layer."""

    def begin(self, row: Row) -> None:
        """Finds where the tokens of this row are stored."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Stores the row's keys and values, each tokens x heads x width."""

    def read(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """Returns keys and values of a group's sequences, each n x heads x length x width.

        Shorter sequences are padded with arbitrary values, which the group's mask hides.
        """

    def copy(self, copy: Copy) -> None:
        """Copies the beginning of one slot to another."""


class NoCache:
    """Keeps only the current layer's keys and values, so texts must come whole."""

    def begin(self, row: Row) -> None:
        split = next((chunk for chunk in row.chunks if chunk.start), None)
        if split:
            raise ServingError(
                f"Request {split.request!r} goes on at token {split.start}; nothing was kept.",
                "Without a cache each step takes whole texts.",
            )

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def read(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        shape = (len(group.chunks), group.tokens, *self._keys.shape[1:])
        keys = self._keys[group.rows].view(shape).transpose(1, 2)
        values = self._values[group.rows].view(shape).transpose(1, 2)
        return keys, values

    def copy(self, copy: Copy) -> None:
        raise ServingError("Without a cache there is nothing to copy.", "Switch prefixes off.")


class SlotCache:
    """Stores each sequence in one contiguous slot, which attention reads in place.

    Args:
        shape: of one token.
        length: tokens per slot.
    """

    def __init__(self, shape: KVShape, slots: int, length: int) -> None:
        size = (shape.layers, slots, shape.heads, length, shape.width)
        # Zeros, because unset memory may hold NaN, and 0 times NaN is NaN even behind a mask.
        self.keys = torch.zeros(size, dtype=shape.dtype)
        self.values = torch.zeros(size, dtype=shape.dtype)

    def begin(self, row: Row) -> None:
        self._slots = row.per_token([chunk.slot for chunk in row.chunks])
        self._positions = row.positions

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.keys[layer][self._slots, :, self._positions] = keys
        self.values[layer][self._slots, :, self._positions] = values

    def read(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        slots = [chunk.slot for chunk in group.chunks]
        first, last = slots[0], slots[-1]
        dense = last - first + 1 == len(slots)  # then a view, else a copy
        place = slice(first, last + 1) if dense else slots
        keys = self.keys[layer][place, :, : group.length]
        return keys, self.values[layer][place, :, : group.length]

    def copy(self, copy: Copy) -> None:
        for tensor in (self.keys, self.values):
            tensor[:, copy.target, :, : copy.tokens] = tensor[:, copy.source, :, : copy.tokens]


class PagedCache:
    """Stores sequences in blocks of a few tokens; a table per sequence lists its blocks.

    Args:
        shape: of one token.
        block_tokens: tokens per block.
    """

    def __init__(self, shape: KVShape, blocks: int, block_tokens: int) -> None:
        size = (shape.layers, blocks, block_tokens, shape.heads, shape.width)
        self.block_tokens = block_tokens
        self.keys = torch.zeros(size, dtype=shape.dtype)
        self.values = torch.zeros(size, dtype=shape.dtype)

    def begin(self, row: Row) -> None:
        longest = max(len(chunk.blocks) for chunk in row.chunks)
        padded = [[*c.blocks, *[0] * (longest - len(c.blocks))] for c in row.chunks]
        self.tables = torch.tensor(padded)
        self.owners = row.per_token(list(range(len(row.chunks))))
        self.positions = row.positions
        self._blocks = self.tables[self.owners, row.positions // self.block_tokens]
        self._offsets = row.positions % self.block_tokens

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.keys[layer][self._blocks, self._offsets] = keys.to(self.keys.dtype)
        self.values[layer][self._blocks, self._offsets] = values.to(self.values.dtype)

    def read(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        needed = -(-group.length // self.block_tokens)
        table = self.tables[group.first : group.first + len(group.chunks), :needed]
        keys = self.keys[layer][table].flatten(1, 2)[:, : group.length]
        values = self.values[layer][table].flatten(1, 2)[:, : group.length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def copy(self, copy: Copy) -> None:
        raise ServingError("Pages are shared, never copied.", "Use Pages, not Slots, as memory.")
