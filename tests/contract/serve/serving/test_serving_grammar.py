"""Answers with a grammar are valid; answers without one stay what they were."""

import json
import random

import jsonschema
import pytest
from support.serving import serve
from tokenizers import Tokenizer

from serving_from_scratch.api.tools import as_json, as_text
from serving_from_scratch.core.batching import ChunkedPrefill, Continuous
from serving_from_scratch.core.json_schema import check_schema
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.proposers import NGram
from serving_from_scratch.core.request import FinishReason, Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.model.loading import ModelManager


def random_schema(draw, depth=2):
    """A schema of what a tool may ask for: objects, lists, choices, texts, numbers."""
    leaves = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = draw.choice(leaves if depth == 0 else [*leaves, "object", "object", "array", "anyOf"])
    if kind == "enum":
        return {"enum": draw.sample(["red", "grün", 'a "b"', 3, -1.5, None, True], 3)}
    if kind == "const":
        return {"const": draw.choice(["x\ny", 7, False])}
    if kind == "anyOf":
        return {"anyOf": [random_schema(draw, depth - 1) for _ in range(2)]}
    if kind == "string":
        return {"type": kind, "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 12)}
    if kind in ("integer", "number"):
        low = draw.randint(-50, 50)
        return {"type": kind, "minimum": low, "maximum": low + draw.randint(1, 200)}
    if kind == "array":
        low = draw.randint(0, 2)
        items = random_schema(draw, depth - 1)
        return {"type": kind, "items": items, "minItems": low, "maxItems": low + 2}
    if kind != "object":
        return {"type": kind}
    names = draw.sample(["a", "b b", "ünï", 'q"', "e", "f"], draw.randint(0, 4))
    required = [name for name in names if draw.random() < 0.6]
    properties = {name: random_schema(draw, depth - 1) for name in names}
    closed = {"additionalProperties": False} if draw.random() < 0.5 else {}
    return {"type": kind, "properties": properties, "required": required, **closed}


def schemas(count=200, seed=5):
    draw = random.Random(seed)
    return [random_schema(draw, depth=draw.randint(0, 3)) for _ in range(count)]


@pytest.fixture(scope="module")
def options(tiny_model):
    return ModelOptions(str(tiny_model), "float32", length=576)


@pytest.fixture(scope="module")
def executor(options):
    return InProcess(ModelManager().runner(options))


def request(id, schema, temperature=1.0, **other):
    sampling = SamplingParameters(
        500,
        temperature,
        seed=id,
        grammar=as_text(as_json(schema)) if schema is not None else "",
        **other,
    )
    return Request(str(id), (5, 6, 7 + id), sampling)


def run(options, executor, requests, strategy=None, seed=None, **other):
    memory = options.memory()
    scheduler = Scheduler(strategy or Continuous(), memory, 8, eos=(2,), **other)
    trace = serve(scheduler, executor, requests, seed=seed)
    assert memory.free_tokens == options.memory().free_tokens
    return trace.finished


def test_answers_to_200_random_schemas_are_valid(options, executor, tiny_llama):
    tokenizer = Tokenizer.from_file(str(tiny_llama / "tokenizer.json"))
    asked = dict(enumerate(schemas()))
    for schema in asked.values():
        check_schema(schema, "schema")
    done = run(options, executor, [request(id, schema) for id, schema in asked.items()])
    cut = [id for id in asked if done[str(id)].finish_reason is FinishReason.LENGTH]
    for id in asked.keys() - set(cut):
        sequence = done[str(id)]
        assert sequence.finish_reason is FinishReason.STOP and not sequence.error
        answer = json.loads(tokenizer.decode(sequence.generated))
        jsonschema.validate(answer, asked[id])
    assert len(cut) < 20  # digits without end


def test_a_grammar_gives_the_same_tokens_in_chunks_with_guesses_and_by_another_worker(
    options, executor
):
    requests = [request(id, schema, logprobs=0) for id, schema in enumerate(schemas(40, seed=6))]
    plain = run(options, executor, requests)
    other_executor = OtherWorkers(options)
    strategy, proposer = ChunkedPrefill(20), NGram(n=2)
    other = run(options, other_executor, requests, strategy, seed=2, proposer=proposer)
    assert {id: s.tokens for id, s in plain.items()} == {id: s.tokens for id, s in other.items()}
    assert sum(sequence.guessing.right for sequence in other.values()) > 0
    assert all(len(s.logprobs) == len(s.generated) for s in other.values())


class OtherWorkers:
    """Computes every fifth step with a worker that has seen no answer; all share one cache."""

    def __init__(self, options):
        self.options, self.manager, self.steps = options, ModelManager(), 0
        self.runner = self.manager.runner(options)

    def step(self, step):
        self.steps += 1
        if self.steps % 5 == 0:
            fresh = self.manager.runner(self.options)
            fresh.cache = self.runner.cache
            self.runner = fresh
        return InProcess(self.runner).step(step)


def test_without_a_schema_nothing_changes(options, executor):
    free = [request(id, None, temperature=0.0, ignore_eos=True) for id in range(4)]
    alone = run(options, executor, free)
    held = [request(id + 10, schema) for id, schema in enumerate(schemas(4))]
    beside = run(options, executor, [*free, *held])
    assert all(beside[r.id].tokens == alone[r.id].tokens for r in free)


def test_a_grammar_that_cannot_be_used_ends_its_request_only(options, executor):
    wrong = Request("wrong", (5, 6), SamplingParameters(9, grammar='{"type": "nonsense"}'))
    done = run(options, executor, [wrong, request(1, {"const": 5})])
    assert done["wrong"].finish_reason is FinishReason.ERROR
    assert "grammar cannot be used" in done["wrong"].error
    assert done["1"].finish_reason is FinishReason.STOP
