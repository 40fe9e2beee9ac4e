"""Every scheme of a recipe, made by the real llm-compressor of tiny models and verified."""

import pytest
from support.tiny_models import configuration, save_model, write_texts

from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.compress.compression import compress
from model_serve_flow.compress.quantise import with_texts
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.untrusted import refuse_hostile

FP8_KV = {"kv_cache_scheme": "FP8"}
# name of the candidate -> recipe and bits per weight, scales included
RECIPES = {
    "w8a16": ({"scheme": "W8A16", "group_size": 64}, 8.25),
    "w8a16-gptq": ({"scheme": "W8A16", "algorithm": "gptq"}, 8.125),
    "fp8": ({"scheme": "FP8"}, 8.0),
    "fp8-block": ({"scheme": "FP8_BLOCK"}, 8.0),
    "fp8-kv": ({"scheme": "FP8_DYNAMIC", **FP8_KV}, 8.1),
    "w8a8-kv": ({"scheme": "W8A8", "algorithm": "gptq", **FP8_KV}, 8.1),
    "nvfp4": ({"scheme": "NVFP4"}, 4.5),
    "nvfp4a16": ({"scheme": "NVFP4A16"}, 4.5),
    "mxfp4": ({"scheme": "MXFP4"}, 4.25),
    "autoround": ({"scheme": "W4A16", "algorithm": "autoround", "group_size": 32}, 4.5),
    "autoround-nvfp4": ({"scheme": "NVFP4", "algorithm": "autoround"}, 4.5),
    "autoround-mxfp4": ({"scheme": "MXFP4", "algorithm": "autoround"}, 4.25),
    "offloaded": ({"scheme": "W8A8", "algorithm": "gptq", "offload": True}, 8.1),
}


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Flow:
    """One layer of Llama, and calibration texts."""
    flow = opened(tmp_path_factory.mktemp("artifacts"), {k: v[0] for k, v in RECIPES.items()})
    save_model(flow.workspace.model("base"), configuration("llama", num_hidden_layers=1))
    write_texts(flow.workspace.data / "calibration.jsonl")
    return flow


def opened(artifacts, recipes) -> Flow:
    candidates = [{"name": name, "recipe": recipe} for name, recipe in recipes.items()]
    settings = {"calibration.samples": 4, "calibration.max_sequence_length": 16}
    return Flow.open("ci", {"candidates": candidates, **settings}, artifacts)


def made(flow: Flow, name: str):
    from transformers import AutoTokenizer

    dataset, facts = calibration_dataset(
        flow, AutoTokenizer.from_pretrained(flow.workspace.model("base"))
    )
    return compress(flow, name, with_texts(dataset), facts)


@pytest.mark.parametrize("name", RECIPES)
def test_a_scheme_is_made_and_verified(flow, name):
    recipe, bits = RECIPES[name]
    result = made(flow, name)
    cached = "+KV_FP8" if recipe.get("kv_cache_scheme") else ""
    assert result.scheme == recipe["scheme"] + cached
    assert result.bits_per_weight == pytest.approx(bits, abs=0.1)
    assert result.quantized_layers == 7 and result.ignored_layers == ("lm_head",)
    assert (result.calibration is None) == (name in ("w8a16", "fp8-block", "nvfp4a16", "mxfp4"))
    refuse_hostile(flow.workspace.model(name))
    assert likeness(flow, name) > (0.99 if bits > 8 - 0.1 else 0.9)


def likeness(flow: Flow, name: str) -> float:
    """Returns the cosine of the base's and the candidate's logits for a text: 1 if they agree."""
    import torch
    from transformers import AutoModelForCausalLM

    text = torch.arange(16)[None]
    with torch.inference_mode():
        logits = [
            AutoModelForCausalLM.from_pretrained(flow.workspace.model(model), dtype="auto")(
                text
            ).logits.float()
            for model in ("base", name)
        ]
    return torch.nn.functional.cosine_similarity(*(x.flatten() for x in logits), dim=0).item()


def test_a_lost_scale_of_the_kv_cache_is_found(flow):
    from safetensors.torch import load_file, save_file

    made(flow, "fp8-kv")
    path = flow.workspace.model("fp8-kv") / "model.safetensors"
    recipe = flow.config.candidate("fp8-kv").recipe
    tensors = load_file(path)
    verify_checkpoint(path.parent, recipe)
    save_file({k: v for k, v in tensors.items() if not k.endswith("v_scale")}, path)
    with pytest.raises(FlowError, match=r"0 layers have a v_scale.*1"):
        verify_checkpoint(path.parent, recipe)
    lost = recipe.model_copy(update={"kv_cache_scheme": None})
    with pytest.raises(FlowError, match="kv_cache_scheme"):
        verify_checkpoint(path.parent, lost)
