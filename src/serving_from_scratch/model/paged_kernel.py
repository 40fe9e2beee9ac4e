"""Computes attention over pages, compiled by numba; each thread takes some tokens and heads."""

import math

import numba
import numpy as np


@numba.njit(parallel=True, fastmath=True)
def paged_attention(queries, keys, values, tables, owners, positions, output):
    """Computes the attention of every token of the row over its sequence's pages.

    Args:
        queries: tokens x heads x width, float32.
        keys: blocks x block_tokens x kv_heads x width; `values` alike.
        tables: sequences x blocks: the pages of each sequence.
        owners: the sequence of each token.
        positions: of each token; a token sees the keys up to its position.
        output: same shape as queries; written.
    """
    tokens, heads = queries.shape[:2]
    for task in numba.prange(tokens * heads):
        token, head = task // heads, task % heads
        attend_one(
            queries[token, head],
            keys,
            values,
            tables[owners[token]],
            positions[token] + 1,
            head // (heads // keys.shape[2]),
            output[token, head],
        )


@numba.njit(fastmath=True)
def attend_one(query, keys, values, table, length, head, output):
    """Computes one token's attention for one head: scores, softmax, weighted sum of values."""
    block_tokens, width = keys.shape[1], query.shape[0]
    weights = np.empty(length, np.float32)
    for position in range(length):
        key = keys[table[position // block_tokens], position % block_tokens, head]
        score = np.float32(0)
        for i in range(width):
            score += query[i] * key[i]
        weights[position] = score / np.float32(math.sqrt(width))
    largest, total = weights.max(), np.float32(0)
    output[:] = 0
    for position in range(length):
        weight = np.exp(weights[position] - largest)
        total += weight
        value = values[table[position // block_tokens], position % block_tokens, head]
        for i in range(width):
            output[i] += weight * value[i]
    output /= total
