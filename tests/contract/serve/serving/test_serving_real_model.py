"""The same tokens with the model that the sequence serves. Minutes, so few prompts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.profiles import CI
from support.serving import Reference, serve
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from serving_from_scratch.core.batching import ChunkedPrefill, Continuous, Static
from serving_from_scratch.core.memory import common_prefix
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.model.loading import ModelManager
from serving_from_scratch.model.row import Row

ROOT = Path(__file__).resolve().parents[4]
TEXTS = (
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    ",
    "The old lighthouse keeper climbed the stairs every evening. " * 8,
    "1, 1, 2, 3, 5, 8,",
)
COMBINATIONS = (
    (Static(4), "none", "sdpa", False),
    (Continuous(), "slots", "sdpa", True),
    (Continuous(), "paged", "paged", True),
    (ChunkedPrefill(32), "slots", "sdpa", False),
)
CLOSE = 0.25  # of a logit: what rounding to BF16 may turn round


@pytest.fixture(scope="session")
def base_model():
    """The base model of a finished flow; otherwise of a flow whose first step is run for it."""
    for artifacts in (ROOT / "artifacts" / "e2e", ROOT / "artifacts" / "serving"):
        folder = artifacts / CI / "models" / "base"
        if (folder / "model.safetensors").is_file():
            return folder
    command = [sys.executable, "-m", "model_serve_flow.cli", "run", "--profile", CI, "--only", "00"]
    subprocess.run([*command, "--artifacts", artifacts], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def prompts(base_model):
    tokenizer = Tokenizer.from_file(str(base_model / "tokenizer.json"))
    return [tuple(tokenizer.encode(text).ids) for text in TEXTS]


@pytest.fixture(scope="session")
def reference(base_model, prompts):
    return Reference.of(base_model, prompts, max_tokens=32)


@pytest.fixture(scope="session")
def manager():
    return ModelManager()


@pytest.mark.parametrize(("strategy", "cache", "attention", "prefixes"), COMBINATIONS)
def test_tokens_are_those_of_transformers(
    base_model,
    reference,
    manager,
    strategy,
    cache,
    attention,
    prefixes,
):
    options = ModelOptions(str(base_model), "float32", cache, attention, places=3, length=256)
    scheduler = Scheduler(strategy, options.memory(prefixes), options.places)
    executor = InProcess(manager.runner(options))
    answers = serve(scheduler, executor, reference.requests(), seed=1).answers
    assert answers == reference.answers


def teacher_forced(runner, ids):
    """The log probabilities of every next token of a text."""
    row = Row(Step((Chunk("a", 0, 0, ids, sample=True),)))
    logits = runner.model.logits(runner.model.forward(row, runner.cache, runner.backend))
    return logits.log_softmax(-1)


def divergence(exact, rounded):
    return (exact.exp() * (exact - rounded)).sum(-1).mean().item()


@torch.inference_mode()
def test_bfloat16_differs_by_rounding_only(base_model, reference):
    exact = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    options = ModelOptions(str(base_model), "bfloat16", places=3, length=256)
    runner = ModelManager().runner(options)
    scheduler = Scheduler(Continuous(), options.memory(), options.places)
    answers = serve(scheduler, InProcess(runner), reference.requests()).answers
    theirs = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.bfloat16)
    own_divergence = their_divergence = 0.0
    for place, prompt in enumerate(reference.prompts):
        text = (*prompt, *reference.answers[str(place)])
        logits = exact(torch.tensor([text])).logits[0]
        own, right = answers[str(place)], reference.answers[str(place)]
        if own != right:
            first = common_prefix(own, right)
            scores = logits[len(prompt) + first - 1]
            assert scores[right[first]] - scores[own[first]] < CLOSE
        own_divergence += divergence(logits.log_softmax(-1), teacher_forced(runner, text))
        rounded = theirs(torch.tensor([text])).logits[0].float()
        their_divergence += divergence(logits.log_softmax(-1), rounded.log_softmax(-1))
    assert 0 < own_divergence <= 1.1 * their_divergence
