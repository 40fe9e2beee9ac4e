"""A random Llama of two layers, and what transformers' `generate` makes of sixteen prompts."""

import random

import pytest
import torch
from support.serving import Reference
from support.serving_server import write_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a checkpoint whose answers are more than one repeated token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        initializer_range=0.3,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_llama):
    """The random Llama with a tokenizer and a chat template."""
    write_tokenizer(tiny_llama)
    return tiny_llama


@pytest.fixture(scope="session")
def reference(tiny_llama):
    """Sixteen prompts of 5 to 512 tokens and the 64 tokens after each, FP32, greedy, alone."""
    draw = random.Random(1)
    lengths = [5, 512, *(draw.randint(5, 300) for _ in range(14))]
    prompts = [tuple(draw.randrange(3, 512) for _ in range(length)) for length in lengths]
    return Reference.of(tiny_llama, prompts, max_tokens=64)
