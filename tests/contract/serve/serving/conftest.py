"""A random Llama of two layers, and what transformers' `generate` makes of sixteen prompts."""

import random

import pytest
import torch
from support.serving import Reference, save_llama
from support.serving_server import write_tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """The folder of a checkpoint whose answers are more than one repeated token."""
    torch.manual_seed(0)
    return save_llama(tmp_path_factory.mktemp("model") / "tiny-llama")


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


@pytest.fixture(scope="session")
def repeating(tiny_llama):
    """Three prompts that repeat a phrase, so that n-grams of their ends appear earlier."""
    draw = random.Random(2)
    phrases = [[draw.randrange(3, 512) for _ in range(length)] for length in (7, 20, 60)]
    return Reference.of(tiny_llama, [tuple(phrase * 4) for phrase in phrases], max_tokens=64)
