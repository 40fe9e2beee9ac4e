"""Every strategy, cache and attention gives the tokens of transformers' `generate`, in FP32."""

import itertools
import json
import random

import pytest
import torch
from support.serving import Reference, save_llama, serve

from serving_from_scratch.core.batching import (
    ChunkedPrefill,
    Continuous,
    Dynamic,
    OneByOne,
    Static,
)
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.proposers import Draft, NGram
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.model.loading import ModelManager


class ShortestFirst(Continuous):
    """A reader's own strategy, as the text of `batching.py` shows it."""

    def plan(self, waiting, running, budget):
        by_length = sorted(waiting, key=lambda sequence: sequence.pending)
        return super().plan(by_length, running, budget)


STRATEGIES = [
    OneByOne(),
    Static(8),
    Dynamic(8, max_wait=3),
    Continuous(),
    ChunkedPrefill(64),
    ShortestFirst(),
]
DENSE = ("sdpa", "eager", "tiled")
CACHES = [
    *itertools.product(["none"], DENSE, [False]),
    *itertools.product(["slots"], DENSE, [False, True]),
    *itertools.product(["paged"], [*DENSE, "paged"], [False, True]),
]


@pytest.fixture(scope="session")
def models():
    return ModelManager()


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory):
    """A checkpoint of one layer and other weights, which guesses wrongly."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("model") / "other-llama"
    return save_llama(folder, layers=1)


def scheduler_for(options, strategy, prefixes=False, **other):
    return Scheduler(strategy, options.memory(prefixes), options.places, **other)


def name(value):
    return type(value).__name__ if not isinstance(value, str | bool) else None


def test_the_reference_is_no_repeated_token(reference):
    assert len({token for answer in reference.answers.values() for token in answer}) > 200


@pytest.mark.parametrize(("cache", "attention", "prefixes"), CACHES)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_tokens_are_those_of_transformers(
    tiny_llama,
    reference,
    models,
    strategy,
    cache,
    attention,
    prefixes,
):
    if strategy.chunks and cache == "none":
        pytest.skip("chunks need a cache; the scheduler refuses the pair")
    options = ModelOptions(str(tiny_llama), "float32", cache, attention, length=576)
    scheduler = scheduler_for(options, strategy, prefixes)
    trace = serve(scheduler, InProcess(models.runner(options)), reference.requests(), seed=3)
    assert trace.answers == reference.answers


@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
def test_llama_3_beyond_its_original_length(tmp_path, old):
    stretch = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    torch.manual_seed(4)
    folder = save_llama(tmp_path, rope_parameters={"rope_theta": 5000.0, **stretch})
    draw = random.Random(4)
    prompts = [tuple(draw.randrange(3, 512) for _ in range(length)) for length in (5, 120, 900)]
    reference = Reference.of(folder, prompts, max_tokens=48)
    config = json.loads((folder / "config.json").read_text())
    if old:  # the spelling of the published checkpoints
        del config["rope_parameters"]
        config |= {"rope_theta": 5000.0, "rope_scaling": stretch}
        (folder / "config.json").write_text(json.dumps(config))
    assert answers(folder, reference) == reference.answers
    config |= {"rope_theta": 5000.0, "rope_scaling": None, "rope_parameters": None}
    (folder / "config.json").write_text(json.dumps(config))
    assert answers(folder, reference)["2"] != reference.answers["2"]  # so the stretch counts


def answers(folder, reference):
    options = ModelOptions(str(folder), "float32", length=960)
    executor = InProcess(ModelManager().runner(options))
    return serve(scheduler_for(options, Continuous()), executor, reference.requests()).answers


PROPOSED = [
    ("none", "sdpa", False),
    ("slots", "sdpa", True),
    ("slots", "tiled", False),
    ("paged", "eager", False),
    ("paged", "paged", True),
]


@pytest.mark.parametrize("guesser", ["n-gram", "good draft", "bad draft"])
@pytest.mark.parametrize(("cache", "attention", "prefixes"), PROPOSED)
@pytest.mark.parametrize("strategy", STRATEGIES, ids=name)
def test_guesses_change_no_token(
    tiny_llama,
    other_llama,
    reference,
    repeating,
    models,
    strategy,
    cache,
    attention,
    prefixes,
    guesser,
):
    if strategy.chunks and cache == "none":
        pytest.skip("chunks need a cache; the scheduler refuses the pair")
    draft, proposer = {
        "n-gram": ("", NGram(n=2, k=4, cost=-1.0)),  # never pauses
        "good draft": (str(tiny_llama), Draft(k=3)),
        "bad draft": (str(other_llama), Draft(k=2)),
    }[guesser]
    options = ModelOptions(str(tiny_llama), "float32", cache, attention, length=576, draft=draft)
    scheduler = scheduler_for(options, strategy, prefixes, proposer=proposer)
    wanted = repeating if guesser == "n-gram" else reference
    requests = repeating.requests() if guesser == "n-gram" else reference.requests()[1::6]
    trace = serve(scheduler, InProcess(models.runner(options)), requests, seed=3)
    assert trace.answers == {r.id: wanted.answers[r.id] for r in requests}
    guessed = sum(sequence.guessing.guessed for sequence in trace.finished.values())
    right = sum(sequence.guessing.right for sequence in trace.finished.values())
    assert guessed
    if guesser == "good draft":
        assert right > 0.95 * guessed and right > len(requests) * 40
    if guesser == "bad draft":
        assert right < 0.3 * guessed < len(requests) * 20


def test_a_draft_model_guesses_for_all_texts_together(tiny_llama, reference):
    options = ModelOptions(str(tiny_llama), "float32", length=576, draft=str(tiny_llama))
    runner = ModelManager().runner(options)
    rows, run = [], runner.draft.run

    def counted(step):
        rows.append(len(step.chunks))
        return run(step)

    runner.draft.run = counted
    scheduler = scheduler_for(options, Continuous(), proposer=Draft(k=3))
    requests = reference.requests()[:4]
    trace = serve(scheduler, InProcess(runner), requests)
    assert trace.answers == {r.id: reference.answers[r.id] for r in requests}
    assert set(rows) == {4} and len(rows) <= 3 * (len(trace.steps) - 1)
