"""Random models of every architecture that the flow is tried with, small enough to make in a test.

The modules that need them import this in the environments that have transformers and torch.
"""

from pathlib import Path
from typing import Any

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED = {**SIZES, "intermediate_size": 256, "num_key_value_heads": 2}
EXPERTS = {**GATED, "num_experts_per_tok": 2}


def configuration(kind: str, **changes: Any) -> Any:
    """Returns the configuration of a tiny model.

    Args:
        kind: its `model_type`.
        changes: fields that are to differ.
    """
    import transformers as t

    def make(name: str, **fields: Any) -> Any:
        return getattr(t, name)(**{**fields, **changes})

    return {
        "llama": lambda: make("LlamaConfig", **GATED),
        "mistral": lambda: make("MistralConfig", **GATED),
        "qwen2": lambda: make("Qwen2Config", **GATED),
        "qwen3": lambda: make("Qwen3Config", **GATED, head_dim=32),
        "gemma2": lambda: make("Gemma2Config", **GATED, head_dim=32, sliding_window=32),
        "gemma3_text": lambda: make("Gemma3TextConfig", **GATED, head_dim=32, sliding_window=32),
        "opt": lambda: make("OPTConfig", **SIZES, ffn_dim=256, word_embed_proj_dim=128),
        "gpt_neox": lambda: make("GPTNeoXConfig", **SIZES, intermediate_size=256),
        "mixtral": lambda: make("MixtralConfig", **EXPERTS, num_local_experts=4),
        "qwen3_moe": lambda: make(
            "Qwen3MoeConfig",
            **EXPERTS,
            num_experts=4,
            moe_intermediate_size=128,
            head_dim=32,
            mlp_only_layers=[],
        ),
    }[kind]()


def save_model(folder: Path, config: Any, *, shards: int = 1) -> None:
    """Saves a random BF16 model with its tokenizer.

    Args:
        folder: where to.
        config: of `configuration`.
        shards: files to spread the weights over, at least.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    size = 2 * sum(weight.numel() for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size="10GB" if shards == 1 else size // shards)
    save_tokenizer(folder, config.vocab_size)


def save_tokenizer(folder: Path, words: int) -> None:
    """Saves a tokenizer whose tokens are w0, w1, ... and <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {f"w{number}": number for number in range(words - 1)} | {"<unk>": words - 1}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="w0"
    ).save_pretrained(folder)


def write_texts(path: Path, count: int = 4, words: int = 16) -> None:
    """Writes calibration texts as 00 does: so many, of so many words each."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"text": " ".join(f"w{(7 * row + word) % 120}" for word in range(words))}
        for row in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
