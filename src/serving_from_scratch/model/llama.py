"""Computes Llama: one forward pass over a flat row of tokens of many sequences.

The row holds prompts, parts of prompts and single new tokens of different sequences, one after the
other. Every layer treats all tokens alike; only attention separates the sequences.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from serving_from_scratch.model.attention import AttentionBackend
from serving_from_scratch.model.kv_cache import KVCache, KVShape
from serving_from_scratch.model.linear import linear, pack
from serving_from_scratch.model.row import Row


@dataclass(frozen=True)
class Stretch:
    """How a model's rotations were slowed down after its training, for longer texts.

    Attributes:
        factor: how much the slow rotations are slowed down.
        low: rotations with fewer turns in the original length are slowed down in full.
        high: rotations with more turns in the original length stay as they are.
        length: the original length, in tokens.
    """

    factor: float
    low: float
    high: float
    length: int


@dataclass(frozen=True)
class LlamaShape:
    """The numbers of a Llama.

    Attributes:
        hidden: width of a token's hidden state.
        inner: width of the MLP.
        heads: number of query heads.
        kv_heads: number of heads of keys and values.
        width: of a head.
        epsilon: of the norms.
        theta: base of the rotary position embedding.
        max_length: the longest supported text, in tokens.
        stretch: of the rotary position embedding; None: as trained.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    width: int
    epsilon: float
    theta: float
    max_length: int
    stretch: Stretch | None = None

    def kv(self, dtype: torch.dtype) -> KVShape:
        return KVShape(self.layers, self.kv_heads, self.width, dtype)


MATRICES = ("qkv", "output", "gate_up", "down")


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; matrices with the same input are joined."""

    attention_norm: Tensor
    qkv: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    def packed(self) -> "Layer":
        """Lays out the matrices for fast multiplication."""
        matrices = {name: pack(getattr(self, name)) for name in MATRICES}
        return replace(self, **matrices)


class Llama:
    """A decoder of Llama's architecture.

    Args:
        embedding: vocabulary x hidden.
        norm: of the last hidden state.
        head: vocabulary x hidden; often the same tensor as the embedding.

    Attributes:
        parameters: number of weights.
        leads: whether it has the last hidden states and chooses the tokens; a shard may not.
        sent: bytes that it gave to other processes.
        exchange: seconds in which it sent, received and waited.
    """

    leads = True
    sent = 0
    exchange = 0.0

    def __init__(
        self,
        shape: LlamaShape,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        head: Tensor,
    ) -> None:
        self.shape = shape
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.rotations = rotations(shape, embedding.dtype)
        tensors = {id(tensor): tensor for tensor in (embedding, norm, head)}
        tensors |= {id(tensor): tensor for layer in layers for tensor in vars(layer).values()}
        self.parameters = sum(tensor.numel() for tensor in tensors.values())

    def pack(self) -> None:
        """Lays out the matrices once for fast multiplication."""
        for number, layer in enumerate(self.layers):
            self.layers[number] = layer.packed()
        self.head = pack(self.head)

    @torch.inference_mode()
    def forward(self, row: Row, cache: KVCache, backend: AttentionBackend) -> Tensor:
        """Computes the last hidden state of every token of the row: tokens x hidden."""
        cache.begin(row)
        cos, sin = (table[row.positions, None] for table in self.rotations)
        x = self.enter(row)
        for number, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, cos, sin)
            cache.write(number, k, v)
            attended = backend.attend(q, cache, number, row)
            x = x + self.join(linear(attended.flatten(1), layer.output))
            x = x + self.join(self._mlp(layer, x))
        return self.leave(x)

    def enter(self, row: Row) -> Tensor:
        """Makes what the first layer reads: tokens x hidden."""
        return functional.embedding(row.ids, self.embedding)

    def join(self, part: Tensor) -> Tensor:
        """Completes the output of attention or MLP; a shard has only its part of the sum."""
        return part

    def leave(self, x: Tensor) -> Tensor:
        """Makes the last hidden state of what the last layer wrote."""
        return self._norm(x, self.norm)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores every token of the vocabulary as the next one: rows x vocabulary, float32."""
        return linear(hidden, self.head).float()

    def _qkv(
        self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.shape
        qkv = linear(self._norm(x, layer.attention_norm), layer.qkv)
        qkv = qkv.view(len(x), -1, shape.width)
        qk, v = qkv.split([shape.heads + shape.kv_heads, shape.kv_heads], dim=1)
        q, k = rotate(qk, cos, sin).split([shape.heads, shape.kv_heads], dim=1)
        return q, k, v

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        both = linear(self._norm(x, layer.mlp_norm), layer.gate_up)
        gate, up = both.chunk(2, dim=-1)
        return linear(functional.silu(gate) * up, layer.down)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self.shape.epsilon)


def rotations(shape: LlamaShape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Computes cosine and sine of every position's rotation: max_length x width each."""
    frequencies = shape.theta ** (-torch.arange(0, shape.width, 2).float() / shape.width)
    if shape.stretch:
        frequencies = stretched(frequencies, shape.stretch)
    angles = torch.arange(shape.max_length).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def stretched(frequencies: Tensor, stretch: Stretch) -> Tensor:
    """Slows rotations down, the slowest most (`apply_scaling` in Meta's code of Llama 3.1).

    Between `low` and `high` turns, a rotation is a blend of both speeds.

    Args:
        frequencies: radians per token.
    """
    turns = stretch.length * frequencies / (2 * math.pi)
    kept = ((turns - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / stretch.factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair of a head's numbers by its position's angle (RoPE, Su et al., 2021)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
