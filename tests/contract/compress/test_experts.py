"""Models with experts, which transformers holds fused and llm-compressor takes apart:
made and verified.
"""

import pytest

from model_serve_flow.compress import compression
from model_serve_flow.compress.compression import compress
from model_serve_flow.compress.recipes import recipe_modifiers
from model_serve_flow.flow.flow import Flow

SIZES = {
    **{
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    **{
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "num_experts_per_tok": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}


def configurations():
    from transformers import MixtralConfig, Qwen3MoeConfig

    return {
        "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
        "qwen3_moe": Qwen3MoeConfig(
            **SIZES, num_experts=4, moe_intermediate_size=64, head_dim=64, mlp_only_layers=[]
        ),
    }


def save_base(folder, config):
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").save_pretrained(folder)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_every_expert_is_quantised_and_verified(tmp_path, monkeypatch, kind):
    from llmcompressor import oneshot

    flow = Flow.open("ci", {"candidates": [{"name": "a", "recipe": {"scheme": "W8A8"}}]}, tmp_path)
    save_base(flow.workspace.model("base"), configurations()[kind])
    monkeypatch.setattr(compression, "generate_sample", lambda folder, **trust: "")
    made = compress(
        flow, "a", lambda model, recipe: oneshot(model=model, recipe=recipe_modifiers(recipe))
    )
    # of both blocks: attention, and three of every expert
    assert made.quantized_layers == 2 * (4 + 4 * 3)
    assert made.ignored_layers == ("lm_head",)
    assert made.scheme == "W8A8"
