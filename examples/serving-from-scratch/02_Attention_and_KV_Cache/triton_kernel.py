"""Computes decoding over pages in Triton's language, for a GPU: the kernel of the paged attention.

One program computes one sequence and one head of keys, with all query heads that share it. It reads
the sequence's pages one after the other and keeps an online softmax, as `Tiled` does with tiles.
Triton computes with powers of two, so group, page and width are padded (`_2`) and masked.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def paged_decode(
    queries: Tensor, keys: Tensor, values: Tensor, tables: Tensor, lengths: Tensor
) -> Tensor:
    """Computes the attention of one new token per sequence; all tensors are contiguous.

    Args:
        queries: sequences x heads x width.
        keys: blocks x block_tokens x kv_heads x width; `values` alike.
        tables: sequences x blocks: the pages of each sequence.
        lengths: of each sequence, its new token included.

    Returns:
        The same shape as queries.
    """
    sequences, heads, width = queries.shape
    page, kv_heads = keys.shape[1:3]
    output = torch.empty_like(queries)
    sizes = {"GROUP": heads // kv_heads, "PAGE": page, "WIDTH": width}
    padded = {f"{name}_2": triton.next_power_of_2(size) for name, size in sizes.items()}
    inputs = (queries * width**-0.5, keys, values, tables, lengths, output, tables.shape[1])
    attend_group[sequences, kv_heads](*inputs, **sizes, **padded)
    return output


@triton.jit
def attend_group(
    queries,
    keys,
    values,
    tables,
    lengths,
    output,
    table_width,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP_2: tl.constexpr,
    PAGE_2: tl.constexpr,
    WIDTH_2: tl.constexpr,
):
    """Computes one sequence's new token for the query heads that share one head of keys."""
    sequence, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    member, place, column = tl.arange(0, GROUP_2), tl.arange(0, PAGE_2), tl.arange(0, WIDTH_2)
    rows = (sequence * heads + head) * GROUP + member
    cells, real = rows[:, None] * WIDTH + column, (member < GROUP)[:, None] & (column < WIDTH)
    query = tl.load(queries + cells, real, other=0).to(tl.float32)
    largest = tl.full([GROUP_2], float("-inf"), tl.float32)
    total, mixed = tl.zeros([GROUP_2], tl.float32), tl.zeros([GROUP_2, WIDTH_2], tl.float32)
    length = tl.load(lengths + sequence)
    for page in range(tl.cdiv(length, PAGE)):
        block = tl.load(tables + sequence * table_width + page).to(tl.int64)
        seen = (place < PAGE) & (page * PAGE + place < length)
        held = ((block * PAGE + place) * heads + head)[:, None] * WIDTH + column
        known = seen[:, None] & (column < WIDTH)
        key = tl.load(keys + held, known, other=0).to(tl.float32)
        value = tl.load(values + held, known, other=0).to(tl.float32)
        largest, total, mixed = add_page(query, key, value, seen, largest, total, mixed)
    tl.store(output + cells, mixed / total[:, None], real)


@triton.jit
def add_page(query, key, value, seen, largest, total, mixed):
    """Adds the keys and values of one page to the online softmax of some queries."""
    scores = tl.sum(query[:, None, :] * key[None, :, :], 2)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    shrink, weights = tl.exp(largest - new_largest), tl.exp(scores - new_largest[:, None])
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], 1)
    return new_largest, total, mixed
