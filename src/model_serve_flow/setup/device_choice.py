"""Chooses for a model and a device what a profile needs: types, length, GPUs and schemes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import FlowConfig, ModelSource, Scheme
from model_serve_flow.setup.device_checks import GPU_SHARE
from model_serve_flow.setup.gpu_memory import GpuNeed, gpu_need
from model_serve_flow.setup.model_facts import ModelFacts
from model_serve_flow.system import schemes
from model_serve_flow.system.gpus import Gpu
from model_serve_flow.system.named_devices import Device
from model_serve_flow.system.schemes import Service
from model_serve_flow.system.sizes import gib

LENGTHS = {"cpu": 2048, "gpu": 8192}  # longest context that is served, if the model has more
PARALLEL = (1, 2, 4, 8)
GROUPS = (128, 64, 32)  # columns that share one scale in vLLM's 4-bit kernels
# In this order: 8 bits, 8-bit floats, 4 bits, 4-bit floats.
OFFERED = ("W8A8", "FP8_DYNAMIC", "W4A16", "NVFP4")


@dataclass(frozen=True)
class Fit:
    """How the engine takes the model on the device.

    Attributes:
        need: estimate for each GPU; None on a CPU.
        usable: bytes of each GPU that vLLM takes; None: a CPU, or not known.
    """

    dtype: str
    length: int
    tensor_parallel: int
    need: GpuNeed | None
    usable: int | None

    @property
    def holds(self) -> bool:
        """Whether vLLM starts, as far as is known."""
        return self.need is None or self.usable is None or self.need.least <= self.usable

    @property
    def waits(self) -> bool:
        """Whether requests of the whole load wait for memory."""
        return self.need is not None and self.usable is not None and self.need.full > self.usable


def choose_fit(model: ModelFacts, device: Device, parent: FlowConfig) -> Fit:
    """Chooses the dtype, the context, and the fewest GPUs that hold the model and its load.

    If no number of GPUs holds the whole load, it is the fewest that hold the model.

    Args:
        parent: the profile whose load decides how much KV cache the engine needs.

    Raises:
        FlowError: the device's GPUs do not hold the model; says what it needs and what they have.
    """
    kind = "gpu" if device.gpus else "cpu"
    length = min(LENGTHS[kind], model.context or LENGTHS[kind])
    dtype = _dtype(model, device)
    if not device.gpus:
        return Fit(dtype, length, 1, None, None)
    known = [gpu.memory_bytes for gpu in device.gpus if gpu.memory_bytes is not None]
    usable = int(GPU_SHARE * min(known)) if known else None
    counts = [n for n in PARALLEL if n <= len(device.gpus) and _divides(model, n)]
    fits = [Fit(dtype, length, n, _need(model, parent, dtype, length, n), usable) for n in counts]
    holding = [fit for fit in fits if fit.holds]
    if holding:
        return next((fit for fit in holding if not fit.waits), holding[0])
    need = fits[-1].need
    assert need is not None
    raise FlowError(
        f"{model.name} does not fit {len(device.gpus)} x {device.gpus[0].name}: each would need "
        f"{gib(need.least)}, and vLLM uses {gib(usable or 0)} of it.",
        "Name larger or more GPUs (--device 8xh200), or take a smaller model.",
    )


def _dtype(model: ModelFacts, device: Device) -> str:
    if not device.gpus:
        return "bfloat16" if "avx512f" in device.features else "float32"
    if 0 < _capability(device.gpus[0]) < 8:
        return "float16"
    return model.dtype if model.dtype in ("bfloat16", "float16") else "bfloat16"


def _capability(gpu: Gpu) -> float:
    try:
        return float(gpu.compute_capability)
    except ValueError:
        return 0.0


def _divides(model: ModelFacts, count: int) -> bool:
    """Checks that every GPU gets as many attention heads."""
    return model.shape is None or model.shape.heads % count == 0


def _need(model: ModelFacts, parent: FlowConfig, dtype: str, length: int, count: int) -> GpuNeed:
    source = ModelSource(name=model.name, source=model.source, parameters=model.parameters)
    engine = {"dtype": dtype, "max_model_len": length, "tensor_parallel": count}
    changed = {"model": source, "engine": parent.engine.model_copy(update=engine)}
    return gpu_need(parent.model_copy(update=changed), model.shape)


def services(model: ModelFacts, device: Device, dtype: str) -> dict[str, Service | None]:
    """Returns how vLLM serves each offered scheme on the device, by the table of kernels."""
    experts = bool(model.shape and model.shape.experts)
    offered = [scheme for scheme in OFFERED if scheme in get_args(Scheme)]
    if not device.gpus:
        cpu = (device.architecture, device.features)
        return {scheme: schemes.on_cpu(scheme, *cpu, experts=experts) for scheme in offered}
    lowest = min(device.gpus, key=_capability).compute_capability
    return {scheme: schemes.on_gpu(scheme, lowest, dtype, experts=experts) for scheme in offered}


def group_size(model: ModelFacts, tensor_parallel: int) -> int | None:
    """Returns the largest group size that divides every layer's columns on each GPU.

    Returns:
        None if no size does; 128 if the model's shape is not known.
    """
    shape = model.shape
    if shape is None:
        return GROUPS[0]
    split = [shape.heads * shape.head_size, shape.intermediate, shape.expert_intermediate]
    columns = [shape.hidden, *(width // tensor_parallel for width in split)]
    return next((size for size in GROUPS if not any(each % size for each in columns)), None)
