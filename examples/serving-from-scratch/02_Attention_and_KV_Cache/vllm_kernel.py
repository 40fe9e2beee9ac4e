"""Calls the attention kernel of vLLM's CPU build without its engine, over pages in its layout."""

import torch
from torch import Tensor
from vllm import _custom_ops as operations

from serving_from_scratch.model.kv_cache import KVShape, PagedCache
from serving_from_scratch.model.row import Row


def has_kernel() -> bool:
    """Returns whether this vLLM is a CPU build; others do not have the kernel."""
    return hasattr(torch.ops._C, "cpu_attention_with_kv_cache")


def instructions(width: int) -> str:
    """Names the kernel's variant for heads of this width in 32-bit numbers."""
    return "vec" if width % 32 == 0 else "vec16"


class VllmCache(PagedCache):
    """Pages of one layer: blocks x heads x (keys, then values) x width; the kernel writes them."""

    def __init__(self, shape: KVShape, blocks: int, block_tokens: int) -> None:
        super().__init__(shape, 0, block_tokens)
        pages = torch.zeros(blocks, shape.heads, 2 * block_tokens, shape.width)
        self.keys, self.values = pages.chunk(2, dim=2)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        places = self._blocks * self.block_tokens + self._offsets
        variant = instructions(keys.shape[-1])
        inputs = (keys, values, self.keys, self.values, places, variant)
        operations.cpu_attn_reshape_and_cache(*inputs)


class Vllm:
    """vLLM's kernel; it divides its work among threads once per step, not once per layer."""

    row: Row | None = None

    def attend(self, queries: Tensor, cache: VllmCache, layer: int, row: Row) -> Tensor:
        if self.row is not row:
            self._begin(queries, cache, row)
        output = torch.empty_like(queries)
        operations.cpu_attention_with_kv_cache(
            queries,
            cache.keys,
            cache.values,
            output,
            self.starts,
            self.lengths,
            scale=queries.shape[-1] ** -0.5,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=self.tables,
            softcap=0.0,
            scheduler_metadata=self.plan,
            s_aux=None,
        )
        return output

    def _begin(self, queries: Tensor, cache: VllmCache, row: Row) -> None:
        self.row = row
        self.starts = torch.tensor([0, *(end + 1 for end in row.ends)], dtype=torch.int32)
        self.lengths = torch.tensor([chunk.end for chunk in row.chunks], dtype=torch.int32)
        self.tables = cache.tables.int()
        self.plan = operations.cpu_attn_get_scheduler_metadata(
            num_reqs=len(row.chunks),
            num_heads=queries.shape[1],
            num_kv_heads=cache.keys.shape[1],
            head_dim=queries.shape[2],
            seq_lens=self.lengths,
            dtype=queries.dtype,
            query_start_loc=self.starts,
            causal=True,
            sliding_window_size=-1,
            isa=instructions(queries.shape[2]),
            enable_kv_split=True,
        )
