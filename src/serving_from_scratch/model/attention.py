"""Computes attention in four ways, which agree but differ in time and memory."""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.model.kv_cache import KVCache, PagedCache
from serving_from_scratch.model.row import Group, Row


class AttentionBackend(Protocol):
    """Computes softmax(q k^T / sqrt(width)) v of each token over the tokens up to itself."""

    def attend(self, queries: Tensor, cache: KVCache, layer: int, row: Row) -> Tensor:
        """Takes and returns tokens x heads x width; keys and values are in the cache."""


class Dense:
    """Shares the loop over groups among backends that read contiguous keys."""

    def attend(self, queries: Tensor, cache: KVCache, layer: int, row: Row) -> Tensor:
        outputs = []
        for group in row.groups:
            shape = (len(group.chunks), group.tokens, *queries.shape[1:])
            keys, values = cache.read(layer, group)
            q = queries[group.rows].view(shape).transpose(1, 2)
            output = self.group(q, keys.to(q.dtype), values.to(q.dtype), group)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def group(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        """Computes the attention of one group.

        Args:
            q: n x heads x m x width.
            k: n x kv_heads x length x width; `v` alike.

        Returns:
            The same shape as q.
        """
        raise NotImplementedError


class Eager(Dense):
    """Computes the formula literally: all scores of a group are in memory at once."""

    def group(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        k, v = spread(k, q.shape[1]), spread(v, q.shape[1])
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~group.mask, -math.inf)
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v


class Tiled(Dense):
    """Computes an online softmax: keys come in tiles, with one tile's scores in memory.

    For each query it keeps the largest score so far, the sum of exponentials and the weighted sum
    of values. A larger score scales down the earlier sums (Milakov and Gimelshein, 2018; the idea
    of FlashAttention).

    Args:
        tile: keys per tile.
    """

    def __init__(self, tile: int = 128) -> None:
        self.tile = tile

    def group(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        k, v = spread(k, q.shape[1]), spread(v, q.shape[1])
        q32 = q.float() / math.sqrt(q.shape[-1])
        largest = torch.full((*q.shape[:3], 1), -math.inf)
        total = torch.zeros_like(largest)
        output = torch.zeros_like(q32)
        for start in range(0, k.shape[2], self.tile):
            tile = slice(start, start + self.tile)
            scores = q32 @ k[:, :, tile].float().transpose(2, 3)
            scores = scores.masked_fill(~group.mask[..., tile], -math.inf)
            # Every token sees a key of the first tile, so `largest` is finite after it.
            new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
            shrink, weights = (largest - new_largest).exp(), (scores - new_largest).exp()
            total = total * shrink + weights.sum(-1, keepdim=True)
            output = output * shrink + weights @ v[:, :, tile].float()
            largest = new_largest
        return (output / total).to(q.dtype)


class Sdpa(Dense):
    """Calls PyTorch's fused kernel."""

    def group(self, q: Tensor, k: Tensor, v: Tensor, group: Group) -> Tensor:
        if group.tokens > 1:
            mask = None if group.causal else group.mask
            return functional.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=group.causal,
                enable_gqa=True,
            )
        # One token each: heads that share keys become tokens of one head, so nothing is repeated.
        shape = (q.shape[0], k.shape[1], -1, q.shape[-1])
        output = functional.scaled_dot_product_attention(q.reshape(shape), k, v, group.mask)
        return output.reshape(q.shape)


class PagedNumba:
    """Reads the pages in place, with a kernel that numba compiles, in 32-bit numbers."""

    def __init__(self) -> None:
        # Imported here, because numba takes a second and only this backend needs it.
        from serving_from_scratch.model.paged_kernel import paged_attention

        self._kernel = paged_attention

    def attend(self, queries: Tensor, cache: KVCache, layer: int, row: Row) -> Tensor:
        if not isinstance(cache, PagedCache) or cache.keys.dtype != torch.float32:
            raise ServingError(
                f"The paged kernel cannot read {type(cache).__name__}.",
                'Choose cache "paged" with attention "paged".',
            )
        output = torch.empty(queries.shape)
        self._kernel(
            queries.float().numpy(),
            cache.keys[layer].numpy(),
            cache.values[layer].numpy(),
            cache.tables.numpy(),
            cache.owners.numpy(),
            cache.positions.numpy(),
            output.numpy(),
        )
        return output.to(queries.dtype)


def spread(tensor: Tensor, heads: int) -> Tensor:
    """Repeats each head of keys or values for the query heads that share it."""
    return tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
