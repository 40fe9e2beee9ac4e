"""LLMEngine without HTTP: pieces of text, stop texts, leaving, closing."""

import asyncio
import threading

import pytest

from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.errors import InvalidRequest, Unavailable
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import FinishReason, SamplingParameters
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.engine.llm_engine import EngineOptions, Job, LLMEngine
from serving_from_scratch.model.loading import ModelManager


@pytest.fixture
def engine(tiny_model):
    model = ModelOptions(str(tiny_model), "float32", length=1024)
    executor = InProcess(ModelManager().runner(model))
    engine = LLMEngine(EngineOptions(model, Continuous()), executor)
    yield engine
    engine.close()


def job(engine, text, tokens=30, **sampling):
    sampling = SamplingParameters(max_tokens=tokens, ignore_eos=True, **sampling)
    return Job(engine.text.encode(text), sampling)


async def read(engine, *jobs):
    return [delta async for delta in engine.generate(list(jobs), stream=True)]


def test_every_token_comes_once_under_its_job(engine):
    deltas = asyncio.run(read(engine, job(engine, "def"), job(engine, "import", 20)))
    for place, tokens in ((0, 30), (1, 20)):
        mine = [delta for delta in deltas if delta.job == place]
        assert sum(len(delta.tokens) for delta in mine) == tokens
        assert [delta.finish_reason for delta in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason is FinishReason.LENGTH


def test_a_stop_text_frees_the_place_at_once(engine):
    whole = "".join(delta.text for delta in asyncio.run(read(engine, job(engine, "def", 500))))
    stop = whole[40:44]
    deltas = asyncio.run(read(engine, job(engine, "def", 500, stop=(stop,))))
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert engine.workload.held == 0


def test_who_closes_the_iterator_leaves_nothing(engine):
    free = engine.memory.free_tokens

    async def leave():
        deltas = engine.generate([job(engine, "def", 900), job(engine, "import", 900)], stream=True)
        await anext(deltas)
        assert engine.workload.held == 2
        await deltas.aclose()

    asyncio.run(leave())
    assert engine.workload.held == 0 and engine.memory.free_tokens == free


def test_all_jobs_are_refused_for_one_bad_one(engine):
    with pytest.raises(InvalidRequest, match="the limit is 1024"):
        asyncio.run(read(engine, job(engine, "def"), job(engine, "def", 2000)))
    assert engine.workload.held == 0


def test_nothing_is_left_after_its_end(engine):
    assert engine.health() == ""
    engine.close()
    assert engine.health() == "The server ends."
    assert not [thread for thread in threading.enumerate() if thread.name == "workload"]
    with pytest.raises(Unavailable):
        asyncio.run(read(engine, job(engine, "def")))
