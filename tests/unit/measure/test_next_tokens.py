"""Engines planted with a fault in the probabilities of next tokens: what they answer is refused,
or not used.
"""

import json
import math

import httpx
import pytest
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.measure.next_tokens import NextTokenReader, next_tokens
from model_serve_flow.measure.scoring import Question, Step

STEPS = [Step((1, 2), (5, 6)), Step((1, 3), (6, 7))]
LOGPROBS = {5: -3.0, 6: -1.0, 7: -2.5}


def document(changes=None, likeliest=-0.7, prompts=2, **entry):
    """What vLLM answers to two prompts; `changes` are other log-probabilities,
    none for a label that is missing.
    """
    values = {
        label: value for label, value in (LOGPROBS | (changes or {})).items() if value is not None
    }
    top = {
        "token_id:9": likeliest,
        **{f"token_id:{label}": value for label, value in values.items()},
    }
    logprobs = {
        "tokens": ["token_id:9"],
        "token_logprobs": [likeliest],
        "top_logprobs": [top],
    } | entry
    return {
        "choices": [{"index": index, "text": "", "logprobs": logprobs} for index in range(prompts)]
    }


def test_labels_are_told_by_their_number_and_the_likeliest_token_beside_them():
    first, second = next_tokens(document(), STEPS)
    assert [first.logprobs[label] for label in (5, 6)] == [-3.0, -1.0] and second.logprobs[
        7
    ] == -2.5
    assert first.likeliest == second.likeliest == -0.7


def test_answers_are_taken_by_their_index_and_not_by_their_order():
    answer = document()
    answer["choices"][1]["logprobs"] = document({6: -2.0})["choices"][0]["logprobs"]
    answer["choices"].reverse()
    assert [one.logprobs[6] for one in next_tokens(answer, STEPS)] == [-1.0, -2.0]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (document({6: None}), "no log-probability of 1 of 2 labels, 6 among them"),
        (document({5: None, 6: None, 7: None}), "no log-probability of 2 of 2 labels"),
        (document({5: math.nan}), "not all log-probabilities are finite"),
        (document({5: -math.inf}), "not all log-probabilities are finite"),
        (document({5: 0.4}), "a log-probability of 0.4, which is above 0"),
        (document({5: -0.2}), "a log-probability of -0.2 where the likeliest token has -0.7"),
        (document({5: -0.7, 6: -0.7, 7: -0.7}), "the labels' probabilities sum to 1.986"),
        (document(prompts=1), "1 of 2 prompts"),
        (document(prompts=3), "3 of 2 prompts"),
        (document(top_logprobs=None), "TypeError"),
        (document(token_logprobs=[]), "ValueError"),
        (document({5: "-1"}), "TypeError"),
        ({"error": "no"}, "KeyError"),
    ],
)
def test_an_impossible_answer_is_refused(answer, problem):
    with pytest.raises(FlowError, match=f"not whole: .*{problem}"):
        next_tokens(answer, STEPS)


METRICS = (
    'vllm:cache_config_info{block_size="16",cache_hit_alignment_tokens="None",'
    'enable_prefix_caching="True"} 1.0'
)


class Engine:
    """Answers each request with what `answer` makes of its body, and remembers the bodies."""

    def __init__(self, answer, metrics=METRICS):
        self.answer, self.metrics, self.bodies = answer, metrics, []

    def __call__(self, request):
        if request.url.path == "/metrics":
            return httpx.Response(200, text=self.metrics) if self.metrics else httpx.Response(404)
        self.bodies.append(json.loads(request.content))
        answer = self.answer(self.bodies[-1])
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


def reader(engine, **settings):
    http = httpx.Client(transport=httpx.MockTransport(engine), base_url="http://server")
    return NextTokenReader(
        http,
        "base",
        **{"concurrency": 1, "size": 2, "seed": 0, "attempts": 1, "cache_block": VLLM.cache_block}
        | settings,
    )


def whole(body):
    """Every label, all equally likely."""
    value = -math.log(len(body["logprob_token_ids"]) + 1)
    top = {f"token_id:{label}": value for label in (*body["logprob_token_ids"], 999)}
    logprobs = {"tokens": ["token_id:999"], "token_logprobs": [value], "top_logprobs": [top]}
    return {
        "choices": [{"index": index, "logprobs": logprobs} for index in range(len(body["prompt"]))]
    }


def without_labels(body):
    """An engine that does not know `logprob_token_ids`: the token it chose, and no other."""
    answer = whole(body)
    for choice in answer["choices"]:
        choice["logprobs"]["top_logprobs"] = [{"token_id:0": -0.1}]
        choice["logprobs"]["tokens"] = ["token_id:0"]
    return answer


def as_text(body):
    """An engine that does not know `return_tokens_as_token_ids`."""
    answer = whole(body)
    for choice in answer["choices"]:
        choice["logprobs"] |= {"tokens": [" A"], "top_logprobs": [{" A": -0.1, " B": -2.3}]}
    return answer


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (whole, True),
        (without_labels, False),
        (as_text, False),
        (
            lambda body: httpx.Response(400, json={"error": "unknown parameter logprob_token_ids"}),
            False,
        ),
        (lambda body: httpx.Response(422, json={}), False),
    ],
)
def test_an_engine_that_does_not_know_labels_is_found_out_with_one_token(answer, known):
    engine = Engine(answer)
    assert reader(engine).knows_labels(7) is known
    assert [body["prompt"] for body in engine.bodies] == [[[7]]]


def test_an_engine_that_fails_or_answers_nonsense_is_no_engine_without_labels():
    with pytest.raises(httpx.HTTPStatusError):
        reader(Engine(lambda body: httpx.Response(500))).knows_labels(7)
    with pytest.raises(FlowError, match="not whole: no JSON: <html>"):
        reader(Engine(lambda body: httpx.Response(200, text="<html>"))).knows_labels(7)
    with pytest.raises(FlowError, match="not whole: ValueError"):
        reader(Engine(lambda body: {"choices": []})).knows_labels(7)


def test_each_request_asks_one_greedy_token_of_an_own_part_of_the_cache():
    engine = Engine(whole)
    questions = [Question((1, 2), {0: (5,), 1: (6,)}), Question((1, 3), {2: (6,), 3: (7,)})]
    assert reader(engine).ask(questions) == {
        place: (pytest.approx(-math.log(4)), True) for place in range(4)
    }
    reader(engine).ask(questions)
    first, second = engine.bodies
    assert first["prompt"] == [[1, 2], [1, 3]] and first["logprob_token_ids"] == [5, 6, 7]
    assert (first["max_tokens"], first["temperature"], first["repetition_penalty"]) == (1, 0, 1.0)
    assert first["cache_salt"] != second["cache_salt"], (
        "a second measurement would repeat the first one's rounding"
    )


def test_a_request_that_is_refused_leaves_its_questions_to_the_echo():
    def picky(body):
        return (
            httpx.Response(400, json={"error": "out of vocabulary"})
            if [2] in body["prompt"]
            else whole(body)
        )

    runs = [[Question((place,), {place: (5,)})] for place in (1, 2, 3)]
    found = list(reader(Engine(picky)).ask_all(runs))
    assert sorted(place for answers in found for place in answers) == [1, 3]


def test_after_a_failure_nothing_more_is_asked_and_what_was_answered_is_kept():
    def failing(body):
        return httpx.Response(500) if body["prompt"] == [[3]] else whole(body)

    engine, kept = Engine(failing), []
    with pytest.raises(httpx.HTTPStatusError):
        for answers in reader(engine).ask_all(
            [[Question((place,), {place: (5,)})] for place in range(1, 30)]
        ):
            kept += answers
    assert sorted(kept) == [
        body["prompt"][0][0] for body in engine.bodies if body["prompt"] != [[3]]
    ]
    assert len(engine.bodies) == 3


@pytest.mark.parametrize(
    ("metrics", "block"),
    [
        (METRICS, 16),
        (METRICS.replace('tokens="None"', 'tokens="64"'), 64),
        (METRICS.replace("True", "False"), None),
        ("vllm:prompt_tokens_total 7", None),
        ("", None),
    ],
)
def test_the_size_of_a_block_is_what_the_engine_says(metrics, block):
    assert reader(Engine(whole, metrics)).block() == block
