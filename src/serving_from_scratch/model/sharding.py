"""Computes a part of a Llama, together with other processes (ranks), over gloo.

Tensor parallel: every rank has some heads and a part of every MLP; two all-reduces a layer add the
parts. Pipeline parallel: every rank has some layers and hands its hidden states to the next rank.
Megatron-LM (Shoeybi et al., 2019; Narayanan et al., 2021).
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, distributed

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import Rank
from serving_from_scratch.model.llama import Layer, Llama, LlamaShape
from serving_from_scratch.model.row import Row


class Shard(Llama):
    """A part of a Llama; `rank` says which."""

    rank: Rank

    def timed(self, work: Callable[[], object], sent: int) -> None:
        """Exchanges tensors with other ranks, and counts; raises ServingError if one has ended."""
        started = time.perf_counter()
        try:
            work()
        except RuntimeError as error:  # gloo's: the connection is closed
            time.sleep(1)  # the executor hears of the dead rank first, and ends this one
            first = str(error).split(". ")[0]  # the rest says where to look
            problem = f"Rank {self.rank.number} lost another rank: {first}."
            raise ServingError(problem, "Start all ranks again.") from error
        self.exchange += time.perf_counter() - started
        self.sent += sent


class TensorShard(Shard):
    """Some heads and a part of the MLP of every layer."""

    def join(self, part: Tensor) -> Tensor:
        self.timed(lambda: distributed.all_reduce(part), part.nbytes)
        return part


class PipelineShard(Shard):
    """Some neighbouring layers."""

    def enter(self, row: Row) -> Tensor:
        if self.rank.number == 0:
            return super().enter(row)
        x = torch.empty(len(row.ids), self.shape.hidden, dtype=self.embedding.dtype)
        self.timed(lambda: distributed.recv(x, self.rank.number - 1), 0)
        return x

    def leave(self, x: Tensor) -> Tensor:
        if self.leads:
            return super().leave(x)
        self.timed(lambda: distributed.send(x, self.rank.number + 1), x.nbytes)
        return x


def shard(model: Llama, rank: Rank) -> Shard:
    """Takes a rank's part of a model, and meets the other ranks; waits for them.

    Raises:
        ServingError: the model has fewer parts than there are ranks.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
    distributed.init_process_group(
        "gloo",
        init_method=rank.meeting,
        rank=rank.number,
        world_size=rank.count,
    )
    return tensor_shard(model, rank) if rank.kind == "tensor" else pipeline_shard(model, rank)


def tensor_shard(model: Llama, rank: Rank) -> TensorShard:
    """Takes a rank's heads of every layer, and its part of the MLPs."""
    shape = model.shape
    heads, inner = share(shape.kv_heads, rank, "KV heads"), share(shape.inner, rank, "MLP columns")
    shared = shape.heads // shape.kv_heads  # query heads per KV head
    part = replace(shape, heads=len(heads) * shared, kv_heads=len(heads), inner=len(inner))
    layers = [part_of_layer(layer, shape, heads, inner) for layer in model.layers]
    made = TensorShard(part, model.embedding, layers, model.norm, model.head)
    made.rank, made.leads = rank, rank.number == 0
    return made


def part_of_layer(layer: Layer, shape: LlamaShape, heads: range, inner: range) -> Layer:
    """Cuts the rows that make a rank's heads and MLP columns, and the columns that read them."""
    width, shared = shape.width, shape.heads // shape.kv_heads
    queries = slice(heads.start * shared * width, heads.stop * shared * width)
    columns = slice(inner.start, inner.stop)
    keys = slice(heads.start * width, heads.stop * width)
    sizes = [shape.heads * width, shape.kv_heads * width, shape.kv_heads * width]
    q, k, v = layer.qkv.split(sizes)
    gate, up = layer.gate_up.chunk(2)
    return replace(
        layer,
        qkv=torch.cat([q[queries], k[keys], v[keys]]),
        output=layer.output[:, queries].contiguous(),
        gate_up=torch.cat([gate[columns], up[columns]]),
        down=layer.down[:, columns].contiguous(),
    )


def pipeline_shard(model: Llama, rank: Rank) -> PipelineShard:
    """Takes a rank's layers."""
    numbers = share(model.shape.layers, rank, "layers")
    layers = model.layers[numbers.start : numbers.stop]
    shape = replace(model.shape, layers=len(layers))
    made = PipelineShard(shape, model.embedding, layers, model.norm, model.head)
    made.rank, made.leads = rank, rank.number == rank.count - 1
    return made


def share(total: int, rank: Rank, what: str) -> range:
    """Gives each rank an equal share; the first ranks get one more if it does not divide."""
    if total < rank.count:
        problem = f"The model has {total} {what}, which {rank.count} ranks cannot share."
        raise ServingError(problem, f"Start at most {total} ranks.")
    each, more = divmod(total, rank.count)
    start = rank.number * each + min(rank.number, more)
    return range(start, start + each + (rank.number < more))
