"""The number of weights and the KV cache of published models, from what their config.json says.

Bytes of weights are `total_size` of the published model.safetensors.index.json files, in bfloat16.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.gpu_memory import gpu_need
from model_serve_flow.setup.shape import base_settings, shape_of

LLAMA = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        **LLAMA,
        **{
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
        },
    },
    "Llama-3.1-70B": {
        **LLAMA,
        **{
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
        },
    },
    "Qwen2.5-7B": {
        **{
            "model_type": "qwen2",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
        },
        **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
        **{"tie_word_embeddings": False, "sliding_window": 131072, "use_sliding_window": False},
    },
    "Gemma-2-9B": {
        **{
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
        },
        **{
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        "sliding_window": 4096,
    },
    "Qwen3-30B-A3B": {
        **{
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
        },
        **{
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
        },
        **{
            "num_experts": 128,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        "tie_word_embeddings": False,
    },
}
PUBLISHED = {  # bytes of the weights, and of the KV cache of a token
    "Llama-3.1-8B": (16_060_522_496, 131_072),
    "Llama-3.1-70B": (141_107_412_992, 327_680),
    "Qwen2.5-7B": (15_231_233_024, 57_344),
    "Gemma-2-9B": (18_483_411_968, 344_064),
    "Qwen3-30B-A3B": (61_064_245_248, 98_304),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_kv_cache_are_those_published(name: str) -> None:
    shape = shape_of(MODELS[name])
    weights, token = PUBLISHED[name]
    assert 2 * shape.parameters == pytest.approx(weights, rel=0.001)
    assert shape.cache_bytes(1) == token


def test_a_sliding_window_bounds_what_half_of_the_layers_keep() -> None:
    shape = shape_of(MODELS["Gemma-2-9B"])
    layer = 2 * 8 * 256 * 2
    assert shape.cache_bytes(8192) == layer * (21 * 8192 + 21 * 4096)


def test_each_gpu_holds_its_share_and_at_least_one_kv_head() -> None:
    shape = shape_of(MODELS["Llama-3.1-70B"])
    assert shape.cache_bytes(1000, tensor=4) == shape.cache_bytes(1000) // 4
    assert shape.cache_bytes(1000, tensor=16) == shape.cache_bytes(1000) // 8
    assert shape.cache_bytes(1000, tensor=2, pipeline=2) == shape.cache_bytes(1000) // 4


@pytest.mark.parametrize(
    "settings",
    [{}, {"model_type": "opt", "hidden_size": 8}, {**MODELS["Qwen2.5-7B"], "kv_lora_rank": 512},
     {**LLAMA, "hidden_size": "wide"}],
)  # fmt: skip
def test_a_model_of_another_kind_has_no_shape(settings: dict[str, Any]) -> None:
    assert shape_of(settings) is None


def open_flow(tmp_path: Path, name: str, **engine: Any) -> Flow:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(MODELS[name]))
    overrides = {
        "model.source": str(source),
        **{f"engine.{key}": value for key, value in engine.items()},
    }
    return Flow.open("gpu-llama-3.1-8b", overrides, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_gpu_needs_is_within_a_tenth_of_what_is_published(tmp_path: Path, name: str) -> None:
    flow = open_flow(tmp_path, name)
    need = gpu_need(flow.config, shape_of(base_settings(flow)))
    weights, token = PUBLISHED[name]
    assert need.weights == pytest.approx(weights, rel=0.1)
    kept = 42 * 8192 * 2 * 8 * 256 * 2 * 0.75 if name.startswith("Gemma") else token * 8192
    assert need.sequence == pytest.approx(kept, rel=0.1)
    assert need.load == pytest.approx(token * 1536 * 100, rel=0.1)
    assert need.least < need.full


def test_four_gpus_share_the_70b_model(tmp_path: Path) -> None:
    flow = open_flow(tmp_path, "Llama-3.1-70B", tensor_parallel=4)
    need = gpu_need(flow.config, shape_of(base_settings(flow)))
    assert need.weights == pytest.approx(141_107_412_992 / 4, rel=0.01)
    assert need.sequence == 327_680 * 8192 // 4


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    flow = open_flow(tmp_path, "Llama-3.1-8B")
    (tmp_path / "source" / "config.json").write_text("{")
    with pytest.raises(FlowError, match=r"source/config\.json cannot be read"):
        base_settings(flow)
