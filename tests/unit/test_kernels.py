import json

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.kernels import expected_layer, require_expected_kernel
from model_serve_flow.results import EngineFacts


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
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("config", "layer"), [(W8A8, "Int8"), (W4A16, "WNA16"), (FP8, "Fp8"), ({"quant_method": "awq"}, "")]
)
def test_each_scheme_has_its_layer(config, layer):
    assert expected_layer(config) == layer


def test_the_right_kernel_passes(folder):
    require_expected_kernel(facts("compressed-tensors", INT8_KERNEL), "w8a8-int8", folder(W8A8))
    require_expected_kernel(facts("compressed-tensors", INT4_KERNEL), "w4a16-int4", folder(W4A16))
    require_expected_kernel(facts(None), "base", folder(None))


def test_a_candidate_served_unquantised_is_refused(folder):
    with pytest.raises(FlowError, match="without a quantised kernel"):
        require_expected_kernel(facts(None), "w8a8-int8", folder(None))


def test_the_kernel_of_another_scheme_is_refused(folder):
    with pytest.raises(FlowError, match=r"needs a kernel for \*Int8\*"):
        require_expected_kernel(facts("compressed-tensors", INT4_KERNEL), "w8a8-int8", folder(W8A8))


def test_a_quantised_base_is_refused(folder):
    with pytest.raises(FlowError, match="served quantised"):
        require_expected_kernel(facts("compressed-tensors", INT8_KERNEL), "base", folder(W8A8))
