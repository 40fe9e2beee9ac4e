"""Every strategy, cache and attention gives the tokens of transformers' `generate`, in FP32."""

import itertools

import pytest
from support.serving import serve

from serving_from_scratch.core.batching import (
    ChunkedPrefill,
    Continuous,
    Dynamic,
    OneByOne,
    Static,
)
from serving_from_scratch.core.options import ModelOptions
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
