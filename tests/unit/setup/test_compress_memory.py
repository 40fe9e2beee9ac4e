"""The memory that 03 needs, by formula and against what was measured."""

import pytest
from test_fit import L40S, ROOMY

from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.compress_memory import compress_need, stored_width
from model_serve_flow.setup.fit import check, estimate
from model_serve_flow.setup.shape import shape_of

GIB = 1 << 30
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
QWEN_EXPERTS = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "head_dim": 128,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 151936, "num_experts": 128, "moe_intermediate_size": 768,
}  # fmt: skip


def need(tmp_path, settings, recipe, profile="gpu-llama-3.1-8b", width=2):
    flow = Flow.open(profile, {"candidates": [{"name": "a", "recipe": recipe}]}, tmp_path)
    return compress_need(flow.config, shape_of(settings), width)


def test_gptq_keeps_a_hessian_for_every_layer_that_is_calibrated_at_a_time(tmp_path):
    gptq = {"scheme": "W4A16", "algorithm": "gptq"}
    whole = need(tmp_path, LLAMA, gptq)
    # q, k, v, o, gate, up; and down, while it is rounded three times
    assert whole.hessians == 4 * (6 * 4096**2 + 3 * 14336**2)
    single = need(tmp_path, LLAMA, gptq | {"sequential_targets": ["Linear"]})
    assert single.hessians == 4 * 3 * 14336**2
    assert need(tmp_path, LLAMA, {"scheme": "FP8_DYNAMIC"}).hessians == 0
    experts = need(tmp_path, QWEN_EXPERTS, gptq)
    assert experts.hessians > 128 * 4 * (2 * 2048**2 + 768**2)


def test_a_gpu_holds_a_layer_and_the_host_the_model(tmp_path):
    found = need(tmp_path, LLAMA, {"scheme": "FP8_DYNAMIC"})
    assert found.weights == pytest.approx(16.06e9, rel=0.001)
    assert found.layer == 128256 * 4096 * 2  # the embedding is larger than a decoder layer
    assert found.device == found.layer + GIB
    assert found.host == 2 * found.weights + 2 * GIB
    offloaded = need(tmp_path, LLAMA, {"scheme": "FP8_DYNAMIC", "offload": True})
    assert offloaded.host < found.host / 5


def test_a_base_stored_in_float32_takes_twice_the_host_and_disk(tmp_path):
    recipe = {"scheme": "W8A8"}
    assert stored_width({"torch_dtype": "float32"}) == 4 == stored_width({"dtype": "float32"})
    assert stored_width({"dtype": "bfloat16"}) == stored_width({}) == 2
    wide = need(tmp_path, LLAMA, recipe, width=4)
    assert wide.weights == 2 * need(tmp_path, LLAMA, recipe).weights


@pytest.mark.parametrize(("name", "measured_mib"), [("w8a8-int8", 1069), ("w4a16-int4", 1141)])
def test_the_estimate_of_the_small_profile_is_near_what_was_measured(tmp_path, name, measured_mib):
    flow = Flow.open("cpu-smollm2", {}, tmp_path)
    only = [c.model_dump() for c in flow.candidates if c.name == name]
    estimated = estimate(Flow.open("cpu-smollm2", {"candidates": only}, tmp_path)).compress_bytes
    assert 1 <= estimated / (measured_mib << 20) < 1.7


@pytest.mark.parametrize(
    ("spare", "outcome"), [(0.9, "does not fit"), (1.1, "warning"), (1.3, "ok")]
)
def test_tight_memory_is_a_warning(tmp_path, spare, outcome):
    flow = Flow.open("gpu-llama-3.1-8b", {}, tmp_path)
    sizes = estimate(flow)
    gpu = L40S.model_copy(update={"memory_bytes": int(spare * sizes.compress_gpu_bytes)})
    machine = ROOMY.model_copy(
        update={"gpus": (gpu,), "memory_available_bytes": int(spare * sizes.compress_bytes)}
    )
    outcomes = {item.name: item.outcome for item in check(flow, machine)}
    assert outcomes["memory to compress"] == outcome == outcomes["GPU memory to compress"]
