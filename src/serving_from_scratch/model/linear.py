"""Multiplies by weights that are laid out once for oneDNN, PyTorch's kernels for CPUs."""

import torch
from torch import Tensor
from torch.nn import functional


def pack(weight: Tensor) -> Tensor:
    """Lays out a weight (out x in) as oneDNN's kernels read it; other code cannot read it then.

    A plain weight is laid out anew in every multiplication. `torch.compile` packs in the same way.
    Where oneDNN cannot multiply the weight's numbers, the weight stays plain.
    """
    if weight.is_mkldnn or not packable(weight.dtype):
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def packable(dtype: torch.dtype) -> bool:
    """Says whether oneDNN multiplies such numbers here; 16-bit numbers need AVX-512."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Computes rows x out from rows x in; the weight is plain or packed."""
    if not weight.is_mkldnn:
        return functional.linear(x, weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
