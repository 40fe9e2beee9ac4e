from typing import Any

import pytest

from model_serve_flow.system.scheme_names import group_schemes, scheme_name

TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}
CHANNEL = {"strategy": "channel", "symmetric": True}
INT8, INT4, FP8, FP4 = ({"type": kind, "num_bits": bits} for kind, bits in
                        (("int", 8), ("int", 4), ("float", 8), ("float", 4)))  # fmt: skip
GROUP = {"strategy": "group", "group_size": 128, "symmetric": True}
NV = {**FP4, "strategy": "tensor_group", "group_size": 16, "symmetric": True}
MX4 = {**FP4, "strategy": "group", "group_size": 32, "symmetric": True}
MX8 = {**MX4, **FP8}
BLOCK = {**FP8, "strategy": "block", "block_structure": [128, 128], "symmetric": True}
STATIC = {**FP8, "strategy": "tensor", "symmetric": True, "dynamic": False}
KV = {**STATIC}


def compressed(*groups: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    parts = {
        f"group_{n}": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
        for n, (weights, inputs) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "config_groups": parts, **more}


@pytest.mark.parametrize(
    ("weights", "inputs", "name"),
    [
        ({**INT8, **CHANNEL}, {**INT8, **TOKEN}, "W8A8"),
        ({**INT8, **CHANNEL}, None, "W8A16"),
        ({**INT4, **GROUP}, None, "W4A16"),
        ({**INT4, **GROUP, "symmetric": False}, None, "W4A16_ASYM"),
        ({**INT4, **GROUP}, {**INT8, **TOKEN}, "W4A8"),
        ({**INT4, **GROUP}, {**FP8, **TOKEN}, "W4AFP8"),
        ({**FP8, **CHANNEL}, {**FP8, **TOKEN}, "FP8_DYNAMIC"),
        (STATIC, STATIC, "FP8"),
        (
            BLOCK,
            {**FP8, "strategy": "group", "group_size": 128, "dynamic": True, "symmetric": True},
            "FP8_BLOCK",
        ),
        ({**FP8, **CHANNEL}, None, "FP8_A16"),
        (NV, {**NV, "dynamic": "local"}, "NVFP4"),
        (NV, None, "NVFP4A16"),
        (MX4, {**MX4, "dynamic": True}, "MXFP4"),
        (MX4, None, "MXFP4A16"),
        (MX8, {**MX8, "dynamic": True}, "MXFP8"),
    ],
)
def test_schemes_have_the_names_of_the_field(weights: Any, inputs: Any, name: str) -> None:
    assert scheme_name(compressed((weights, inputs))) == name


def test_groups_and_the_kv_cache_are_named_together() -> None:
    mixed = compressed((NV, {**NV, "dynamic": "local"}), (STATIC, STATIC), kv_cache_scheme=KV)
    assert scheme_name(mixed) == "NVFP4+FP8+KV_FP8"
    assert group_schemes(mixed) == {"group_0": "NVFP4", "group_1": "FP8"}


def test_a_group_for_attention_alone_is_no_scheme_of_weights() -> None:
    attention_first = compressed((None, STATIC), ({**FP8, **CHANNEL}, None))
    assert group_schemes(attention_first) == {"group_1": "FP8_A16"}
    assert scheme_name(compressed(kv_cache_scheme=KV)) == "KV_FP8"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, "W4A16_ASYM"),
        ({"quant_method": "gptq", "bits": 4, "sym": True}, "W4A16"),
        ({"quant_method": "auto-round", "bits": 4, "sym": True}, "W4A16"),
        (
            {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
            "FP8_BLOCK",
        ),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "FP8"),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
            "NVFP4+KV_FP8",
        ),
        ({"quant_method": "mxfp4"}, "MXFP4A16"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "BNB_4BIT"),
    ],
)
def test_checkpoints_of_other_tools_have_names_too(config: dict[str, Any], name: str) -> None:
    assert scheme_name(config) == name
