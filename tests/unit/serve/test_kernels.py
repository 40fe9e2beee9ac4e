import json

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.serve import kernels
from model_serve_flow.serve.kernels import logged_kernels, require_expected_kernel
from model_serve_flow.system.gpus import Gpu


def facts(quantization, *kernels):
    return EngineFacts(
        version="0.32.0",
        quantization=quantization,
        kernels=kernels,
        kv_cache_tokens=1,
        start_seconds=1,
        peak_memory_bytes=1,
    )


def compressed(weights, activations):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, "input_activations": activations}},
    }


W8A8 = compressed({"type": "int", "num_bits": 8}, {"type": "int", "num_bits": 8})
W4A16 = compressed({"type": "int", "num_bits": 4}, None)
FP8 = compressed({"type": "float", "num_bits": 8}, {"type": "float", "num_bits": 8})
INT8_KERNEL = "CPUInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8"
INT4_KERNEL = "CPUWNA16LinearKernel for CompressedTensorsWNA16"


@pytest.fixture
def folder(tmp_path):
    def write(config):
        (tmp_path / "config.json").write_text(
            json.dumps({"quantization_config": config} if config else {})
        )
        return tmp_path

    return write


def test_the_right_kernel_passes(folder):
    require_expected_kernel(facts("compressed-tensors", INT8_KERNEL), "w8a8-int8", folder(W8A8))
    require_expected_kernel(facts("compressed-tensors", INT4_KERNEL), "w4a16-int4", folder(W4A16))
    require_expected_kernel(facts(None), "base", folder(None))


def test_a_candidate_served_unquantised_is_refused(folder):
    with pytest.raises(FlowError, match="without a quantised kernel"):
        require_expected_kernel(facts(None), "w8a8-int8", folder(None))


def test_the_kernel_of_another_scheme_is_refused(folder):
    with pytest.raises(
        FlowError, match=r"group_0 \(W8A8\) needs a kernel for CompressedTensorsW8A8Int8"
    ):
        require_expected_kernel(facts("compressed-tensors", INT4_KERNEL), "w8a8-int8", folder(W8A8))


def test_a_quantised_base_is_refused(folder):
    with pytest.raises(FlowError, match="served quantised"):
        require_expected_kernel(facts("compressed-tensors", INT8_KERNEL), "base", folder(W8A8))


# Logs of GPUs. The lines are those of vLLM 0.32's format strings; no such run was made.

HEAD = (
    "(EngineCore pid=1) INFO Initializing a V1 LLM engine (v0.32.0) with config: "
    "quantization=compressed-tensors\n"
)
NV = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
MX = {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}
FP8W = {"type": "float", "num_bits": 8, "strategy": "channel"}
FP8A = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True}
MARLIN_FP8 = (
    "WARNING Your GPU does not have native support for FP8 computation but FP8 quantization is "
    "being used. Weight-only FP8 compression will be used leveraging the Marlin kernel. This may "
    "degrade performance"
)


def served(*lines):
    return facts("compressed-tensors", *logged_kernels(HEAD + "\n".join(lines)))


@pytest.mark.parametrize(
    ("weights", "activations", "line"),
    [
        ({"type": "int", "num_bits": 8}, {"type": "int", "num_bits": 8},
         "Selected CutlassInt8ScaledMMLinearKernel for CompressedTensorsW8A8Int8"),
        (INT4, None, "Using MarlinLinearKernel for CompressedTensorsWNA16"),
        (INT4, None, "Using MacheteLinearKernel for CompressedTensorsWNA16"),
        ({**INT4, "symmetric": False}, None,
         "Using MacheteLinearKernel for CompressedTensorsWNA16"),
        (FP8W, FP8A, "Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8"),
        ({**FP8W, "strategy": "block"}, FP8A,
         "Selected DeepGemmFp8BlockScaledMMKernel for CompressedTensorsW8A8Fp8"),
        (INT4, FP8A, "Using CutlassW4A8LinearKernel for CompressedTensorsW4A8Fp8"),
        (INT4, {"type": "int", "num_bits": 8},
         "Using HummingLinearKernel for CompressedTensorsW4A8Int"),
        (NV, NV, "Using CutlassNvFp4LinearKernel for NVFP4 GEMM"),
        (NV, None, "Using MarlinNvFp4LinearKernel for NVFP4 GEMM"),
        (MX, MX, "Using MarlinMxFp4LinearKernel for MXFP4 GEMM"),
        ({**MX, "num_bits": 8}, {**MX, "num_bits": 8},
         "Using MarlinMxfp8LinearKernel for MXFP8 GEMM"),
        (INT4, None, "Using 'MARLIN' WNA16 MoE backend."),
        (FP8W, FP8A,
         "Using TRITON Fp8 MoE backend out of potential backends: ['TRITON', 'MARLIN']."),
        ({"type": "int", "num_bits": 8}, {"type": "int", "num_bits": 8},
         "Using TRITON Int8 MoE backend out of potential backends: ['TRITON']."),
        (NV, NV,
         "Using 'VLLM_CUTLASS' NvFp4 MoE backend out of potential backends: ['VLLM_CUTLASS']."),
        (MX, None, "Using MarlinExperts for MXFP4 MoE"),
        ({**MX, "num_bits": 8}, {**MX, "num_bits": 8}, "Using 'DEEPGEMM' MxFp8 MoE backend."),
        (INT4, {"type": "int", "num_bits": 8},
         "Using CPU W4A8 Int8 MoE backend out of potential backends: ['CPU']."),
        (INT4, FP8A, "Using CUTLASS W4A8 MoE backend."),
    ],
)  # fmt: skip
def test_every_scheme_is_proved_by_its_line(folder, weights, activations, line):
    require_expected_kernel(served(line), "candidate", folder(compressed(weights, activations)))


def test_a_group_that_no_line_proves_is_named(folder):
    config = compressed(NV, NV)
    config["config_groups"]["group_1"] = {"weights": FP8W, "input_activations": FP8A}
    attention = "Selected CutlassFP8ScaledMMLinearKernel for CompressedTensorsW8A8Fp8"
    experts = "Using 'MARLIN' NvFp4 MoE backend out of potential backends: ['MARLIN']."
    require_expected_kernel(served(attention, experts), "mixed", folder(config))
    for line, missing in ((attention, "group_0 .NVFP4."), (experts, "group_1 .FP8_DYNAMIC.")):
        with pytest.raises(FlowError, match=missing):
            require_expected_kernel(served(line), "mixed", folder(config))


@pytest.mark.parametrize(
    ("capability", "passes"), [("8.6", True), ("7.5", True), ("8.9", False), (None, False)]
)
def test_fp8_without_a_line_passes_only_where_vllm_writes_none(
    folder, monkeypatch, capsys, capability, passes
):
    gpu = (
        None
        if capability is None
        else Gpu(name="x", memory_bytes=1, driver="580", compute_capability=capability)
    )
    monkeypatch.setattr(kernels, "find_gpus", lambda: ((gpu,) if gpu else (), None))
    config = folder(compressed(FP8W, FP8A))
    if passes:
        require_expected_kernel(served(), "fp8", config)
        assert "activations in 16 bits" in capsys.readouterr().out
    else:
        with pytest.raises(FlowError, match="its log names none"):
            require_expected_kernel(served(), "fp8", config)


def test_marlin_says_that_it_unpacks_fp8(folder):
    assert served(MARLIN_FP8).kernels == ("Marlin for CompressedTensorsW8A16Fp8",)
    require_expected_kernel(served(MARLIN_FP8), "fp8", folder(compressed(FP8W, None)))


def test_a_checkpoint_with_only_its_kv_cache_in_fp8(folder):
    cache = {
        "quant_method": "compressed-tensors",
        "config_groups": {},
        "kv_cache_scheme": {"num_bits": 8},
    }
    require_expected_kernel(served(), "kv", folder(cache))
    with pytest.raises(FlowError, match="without a quantised kernel"):
        require_expected_kernel(facts(None), "kv", folder(cache))


def test_a_group_for_attention_needs_no_kernel(folder):
    config = compressed(None, FP8A)
    config["config_groups"]["group_1"] = {"weights": INT4, "input_activations": None}
    require_expected_kernel(
        served("Using MarlinLinearKernel for CompressedTensorsWNA16"), "kv", folder(config)
    )


def test_experts_of_the_base_are_not_quantised(folder):
    line = "Using TRITON Unquantized MoE backend out of potential backends: ['TRITON']."
    assert logged_kernels(line) == ()
    require_expected_kernel(facts(None, *logged_kernels(line)), "base", folder(None))


def test_another_tools_layers_have_other_names(folder):
    gptq = {"quant_method": "gptq", "bits": 4}
    require_expected_kernel(
        served("Using MarlinLinearKernel for AutoGPTQLinearMethod"), "gptq", folder(gptq)
    )
