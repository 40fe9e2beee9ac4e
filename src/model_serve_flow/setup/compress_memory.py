"""Estimates the memory that 03 needs: of the host, and of each GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_serve_flow.flow.profile import FlowConfig, Recipe
from model_serve_flow.setup.checks import Check, fits
from model_serve_flow.setup.shape import Shape

if TYPE_CHECKING:
    from model_serve_flow.system.hardware import Machine

RUNTIME_BYTES = 1 << 30  # Python, PyTorch and llm-compressor; measured on a CPU: 0.55 GiB
CUDA_BYTES = 1 << 30  # CUDA's libraries on the host, and its context on each GPU
LARGEST_HEAD = 128  # width of an attention head
TIGHT = 1.2  # with less than so many times the estimate, there is a warning
HESSIAN_WIDTH = 4  # llm-compressor keeps Hessians in float32
HESSIAN_COPIES = 3  # GPTQ holds a Hessian, its reordered copy and its inverse
# Hidden size from the number of weights P, and the width of the feed-forward layer relative to it:
# of Llama models between 0.1 and 70 billion weights, where config.json is not known.
HIDDEN = (0.075, 0.48)
FEED_FORWARD = 3.5


@dataclass(frozen=True)
class CompressNeed:
    """Bytes that 03 needs.

    Attributes:
        weights: the base as it is loaded; on the host.
        activations: what llm-compressor keeps of all texts between two layers; on the host.
        hessians: GPTQ's, of one decoder layer; on the GPU if there is one.
        layer: weights of the largest part that is on the GPU at a time.
        on_gpu: whether there is a GPU.
        offloaded: whether weights that do not fit wait on disk.
    """

    weights: int
    activations: int
    hessians: int
    layer: int
    on_gpu: bool
    offloaded: bool

    @property
    def host(self) -> int:
        """The host's memory: the weights and the copy that is saved, activations, and the rest."""
        weights = 2 * (self.layer if self.offloaded else self.weights)
        rest = CUDA_BYTES if self.on_gpu else self.hessians
        return weights + self.activations + rest + RUNTIME_BYTES

    @property
    def device(self) -> int:
        """The memory of each GPU; 0 without one."""
        return self.layer + self.hessians + CUDA_BYTES if self.on_gpu else 0


def compress_need(config: FlowConfig, shape: Shape | None, width: int = 2) -> CompressNeed:
    """Estimates what the recipe that needs most needs.

    - weights = number of weights x bytes of the dtype in which the base is stored
    - activations = for each text of L tokens: what enters and leaves a layer (2 x 2 bytes x L x
      hidden size), the attention mask (2 bytes x L x L), and sine and cosine of the positions
      (2 x 2 bytes x L x 128)
    - Hessians = 4 bytes x (input columns)^2 for every linear layer that is calibrated at a time: a
      decoder layer, with all its experts, or one layer with `sequential_targets: [Linear]`. While
      GPTQ rounds the largest, it holds it three times.

    Without a shape, the sizes are those of a Llama with as many weights.

    Args:
        config: the profile.
        shape: of the base, from its config.json.
        width: bytes of a stored weight.
    """
    recipes = [candidate.recipe for candidate in config.candidates if candidate.recipe]
    parameters = shape.parameters if shape else config.model.parameters
    hidden = shape.hidden if shape else int(HIDDEN[0] * parameters ** HIDDEN[1])
    return CompressNeed(
        weights=parameters * width,
        activations=_activations(config, hidden, width)
        if any(recipe.needs_calibration for recipe in recipes)
        else 0,
        hessians=max((_hessians(recipe, shape, hidden) for recipe in recipes), default=0),
        layer=_largest_part(shape, parameters) * width,
        on_gpu=config.device == "gpu",
        offloaded=all(recipe.offload for recipe in recipes),
    )


def _activations(config: FlowConfig, hidden: int, width: int) -> int:
    length = config.calibration.max_sequence_length
    return config.calibration.samples * width * length * (2 * hidden + 2 * LARGEST_HEAD + length)


def _hessians(recipe: Recipe, shape: Shape | None, hidden: int) -> int:
    if recipe.algorithm != "gptq":
        return 0
    columns = _input_columns(shape, hidden)
    together = [max(columns)] if recipe.sequential_targets == ("Linear",) else columns
    extra = (HESSIAN_COPIES - 1) * max(columns) ** 2
    return HESSIAN_WIDTH * (sum(count**2 for count in together) + extra)


def _input_columns(shape: Shape | None, hidden: int) -> list[int]:
    """Lists the input columns of the linear layers of one decoder layer, the largest kind."""
    if shape is None:
        return [hidden] * 6 + [int(FEED_FORWARD * hidden)]
    attention = [shape.hidden] * 3 + [shape.heads * shape.head_size]
    dense = [shape.hidden] * 2 + [shape.intermediate]
    if not shape.experts:
        return attention + dense
    expert = [shape.hidden] * 2 + [shape.expert_intermediate]
    shared = [shape.hidden] * 2 + [shape.shared_intermediate] if shape.shared_intermediate else []
    return attention + expert * shape.experts + shared


def _largest_part(shape: Shape | None, parameters: int) -> int:
    """Returns the weights of the largest decoder layer or of the embedding."""
    if shape is None:
        return parameters // 10
    embedding = shape.vocabulary * shape.hidden
    layers = shape.parameters - embedding * (1 if shape.tied else 2)
    return max(embedding, layers // max(shape.layers - shape.dense_layers, 1))


def stored_width(settings: Mapping[str, Any]) -> int:
    """Returns the bytes in which a base stores a weight, from its config.json; 2 if not known."""
    return 4 if str(settings.get("dtype") or settings.get("torch_dtype")) == "float32" else 2


def compress_checks(
    config: FlowConfig, machine: Machine, needed: Mapping[str, int], advice: str
) -> list[Check]:
    """Checks that 03 has the memory it needs; warns where it is tight.

    Args:
        config: the profile.
        machine: what there is.
        needed: bytes of the "host", and of each "gpu".
        advice: what to change if the host's memory does not suffice.
    """
    checks = [_with_margin("memory to compress", machine.memory_available_bytes, needed["host"],
                           advice)]  # fmt: skip
    used = machine.gpus[: config.calibration.data_parallel]
    known = [gpu.memory_bytes for gpu in used if gpu.memory_bytes is not None]
    if config.device == "gpu" and known:
        checks.append(_with_margin("GPU memory to compress", min(known), needed["gpu"], GPU_ADVICE))
    return checks


GPU_ADVICE = "Set 'sequential_targets: [Linear]' in the recipes, or use a GPU with more memory."


def _with_margin(name: str, available: int, needed: int, advice: str) -> Check:
    """Checks bytes; warns if less than a fifth more is available, which the estimate may miss."""
    check = fits(name, available, needed, advice)
    tight = check.ok and available < TIGHT * needed
    return check.model_copy(update={"warning": tight})
