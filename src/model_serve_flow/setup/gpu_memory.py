"""Estimates the memory that a model needs on each GPU: to start, and under the whole load."""

from __future__ import annotations

from dataclasses import dataclass

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.setup.shape import Shape

RUNTIME_BYTES = 2 << 30  # CUDA's context, PyTorch, NCCL and the CUDA graphs
BATCHED_TOKENS = 8192  # vLLM's default of max_num_batched_tokens on a large GPU
SAMPLED = 256  # requests whose next token vLLM draws at once, in float32


@dataclass(frozen=True)
class GpuNeed:
    """Bytes on each GPU.

    Attributes:
        weights: the model, in the engine's dtype.
        sequence: KV cache of one request of `engine.max_model_len` tokens; vLLM does not start
            without it.
        load: KV cache of all requests at the highest concurrency. With less, vLLM lets requests
            wait.
        overhead: CUDA, PyTorch, and the activations of the largest batch.
    """

    weights: int
    sequence: int
    load: int
    overhead: int

    @property
    def least(self) -> int:
        """The bytes without which vLLM does not start."""
        return self.weights + self.sequence + self.overhead

    @property
    def full(self) -> int:
        """The bytes with which no request of the load waits for memory."""
        return self.weights + max(self.sequence, self.load) + self.overhead


def gpu_need(config: FlowConfig, shape: Shape | None) -> GpuNeed:
    """Estimates what the base needs on each GPU.

    - GPUs = `engine.tensor_parallel` x `engine.pipeline_parallel`
    - weights = number of weights x bytes of the dtype / GPUs
    - KV cache = `Shape.cache_bytes`; without a shape, 8 P^0.425 bytes per token for P weights
    - overhead = 2 GiB + 8192 tokens x (4 hidden + 2 intermediate) values + 256 x vocabulary x 8
      bytes

    The estimate divides embedding and output layer among all GPUs, although one stage of a pipeline
    holds each of them alone.
    """
    engine, load = config.engine, config.performance
    width = 4 if engine.dtype == "float32" else 2
    weights = (shape.parameters if shape else config.model.parameters) * width // engine.gpus
    per_request = load.prompt_tokens + load.output_tokens
    return GpuNeed(
        weights=weights,
        sequence=_cache(config, shape, engine.max_model_len, width),
        load=_cache(config, shape, per_request, width) * max(load.concurrency, default=0),
        overhead=RUNTIME_BYTES
        + (_activations(shape, width) // engine.tensor_parallel if shape else 0),
    )


def _cache(config: FlowConfig, shape: Shape | None, tokens: int, width: int) -> int:
    engine = config.engine
    if shape is None:
        return int(8 * config.model.parameters**0.425 * tokens) * width // 2 // engine.gpus
    parallel = {"tensor": engine.tensor_parallel, "pipeline": engine.pipeline_parallel}
    return shape.cache_bytes(tokens, width=width, **parallel)


def _activations(shape: Shape, width: int) -> int:
    wide = max(shape.intermediate, shape.expert_intermediate)
    return BATCHED_TOKENS * (4 * shape.hidden + 2 * wide) * width + SAMPLED * shape.vocabulary * 8
