"""lm-eval's client against stock `local-completions` on one small model,
and against engines that answer wrongly.
"""

import hashlib
import math
import random
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from lm_eval.models.openai_completions import LocalCompletionsAPI
from support.engines import VLLM
from test_resume import KEY, LETTERS, Endpoint, folder, opened, serving  # noqa: F401

from model_serve_flow.errors import FlowError
from model_serve_flow.measure.accuracy import measure_accuracy
from model_serve_flow.measure.lm_eval_client import WholeCompletions

METRICS = 'vllm:cache_config_info{block_size="4",enable_prefix_caching="True"} 1.0'
MOST_TOKENS = 48
RIGHT = staticmethod(lambda choices: choices)


@dataclass
class Model(Endpoint):
    """A model whose next token follows from all tokens before;
    the same by an echo and by labels.
    """

    vocabulary: int = 200

    def scores(self, prompt):
        seed = int.from_bytes(hashlib.sha256(str(tuple(prompt)).encode()).digest()[:8], "big")
        logits = np.random.default_rng(seed).normal(0, 3, self.vocabulary)
        return logits - math.log(np.exp(logits).sum())

    def choice(self, index, prompt, body):
        if body.get("echo"):
            rows = [self.scores(prompt[:end]) for end in range(1, len(prompt) + 1)]
            pairs = list(zip([*prompt[1:], 0], rows, strict=True))
            values = [None, *(float(row[token]) for token, row in pairs)]
            top = [None, *({"x": float(row.max()), "y": float(row[token])} for token, row in pairs)]
            return {
                "index": index,
                "text": "",
                "logprobs": {"token_logprobs": values, "top_logprobs": top},
            }
        row = self.scores(prompt)
        likeliest = int(row.argmax())
        labels = body["logprob_token_ids"] if self.labels else []
        top = {f"token_id:{label}": float(row[label]) for label in {likeliest, *labels}}
        logprobs = {
            "tokens": [f"token_id:{likeliest}"],
            "token_logprobs": [float(row.max())],
            "top_logprobs": [top],
        }
        return {"index": index, "text": "", "logprobs": logprobs}


def settings(endpoint, tokenizer, concurrency, batch):
    return {
        "model": "base", "base_url": f"{endpoint.url}/v1/completions", "tokenizer": str(tokenizer),
        "tokenizer_backend": "huggingface", "tokenized_requests": True,
        "num_concurrent": concurrency,
        "batch_size": batch, "max_length": MOST_TOKENS, "timeout": 60, "max_retries": 1,
    }  # fmt: skip


def asked(questions, endpoint, flow, monkeypatch, concurrency=3, batch=4):
    """What lm-eval's own client and ours answer, how many tokens they sent,
    and the ways of ours.
    """
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    instances = [SimpleNamespace(args=pair) for pair in questions]
    server, ways = serving(flow, endpoint.url), Counter()
    where = settings(endpoint, server.folder, concurrency, batch)
    stock = LocalCompletionsAPI(**where).loglikelihood(instances, disable_tqdm=True)
    stock_tokens = sum(map(len, endpoint.asked))
    with server.client() as client:
        ours = WholeCompletions(
            **where, client=client, cache_block=VLLM.cache_block, ways=ways
        ).loglikelihood(instances, disable_tqdm=True)
    return stock, ours, stock_tokens, sum(map(len, endpoint.asked)) - stock_tokens, ways


def same(stock, ours):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in stock]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in stock], abs=1e-9)


def text(generator, words):
    return "".join(generator.choice(LETTERS) for _ in range(generator.randint(*words)))


def choices(generator, most):
    """Contexts with a few continuations each; some end in a space, are too long or repeat,
    and one is empty.
    """
    contexts = [
        "a" + text(generator, (0, 60)) + generator.choice(["", "", "  "]) for _ in range(30)
    ] + [""]
    continuations = [
        [" " + text(generator, (1, most)) for _ in range(generator.randint(1, 5))] for _ in contexts
    ]
    pairs = [
        (context, one)
        for context, some in zip(contexts, continuations, strict=True)
        for one in some
    ]
    return [*pairs, *pairs[:3]]


@pytest.mark.parametrize(("concurrency", "batch"), [(3, 4), (1, 1)])
@pytest.mark.parametrize("metrics", ["", METRICS])
@pytest.mark.parametrize("most", [1, 3])
def test_every_answer_is_that_of_local_completions(
    folder,  # noqa: F811
    monkeypatch,
    concurrency,
    batch,
    metrics,
    most,
):
    questions = choices(random.Random(f"{most}"), most)
    with Model(metrics=metrics) as endpoint:
        stock, ours, before, after, ways = asked(
            questions, endpoint, opened(folder), monkeypatch, concurrency, batch
        )
    same(stock, ours)
    cut = ways.pop("cut", 0)  # the longest contexts of these questions
    assert sum(ways.values()) == len(questions) >= cut and ways["one token"] > 0
    if not metrics:
        assert after < before and not ways["token by token"]


def test_a_tokenizer_that_merges_context_and_continuation_is_asked_what_lm_eval_asks(
    folder,  # noqa: F811
    monkeypatch,
):
    """'o d' becomes one token: lm-eval is left with a part of the continuation,
    or with none of it.
    """
    from tokenizers import Regex, pre_tokenizers
    from transformers import AutoTokenizer

    flow = opened(folder)
    tokenizer = AutoTokenizer.from_pretrained(flow.workspace.model("base"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"o \w|[\s\S]"), "isolated"
    )
    tokenizer.save_pretrained(flow.workspace.model("base"))
    questions = [("a is to b as c is to", f" {word}") for word in ("d", "e", "df", "dg", "efg")]
    with Model() as endpoint:
        stock, ours, _, _, ways = asked(questions, endpoint, flow, monkeypatch)
    same(stock, ours)
    # nothing is left of 'd' and 'e', two tokens of 'efg'
    assert ways == {"echo": 3, "one token": 2}


def test_an_engine_without_labels_is_asked_as_before(folder, monkeypatch):  # noqa: F811
    questions = choices(random.Random(7), 1)
    with Model(labels=False) as endpoint:
        stock, ours, before, after, ways = asked(questions, endpoint, opened(folder), monkeypatch)
    same(stock, ours)
    assert after == before + 1, "one token more, to find out"
    assert ways["echo: the engine gives no label probabilities"] > 0 == ways["one token"]


def labelled(change):
    """An engine whose answers to labels are changed, and whose echoes are right."""

    def alter(answers):
        for answer in answers:
            logprobs = answer["logprobs"]
            if "tokens" in logprobs:
                (top,) = logprobs["top_logprobs"]
                top |= change(
                    {name: value for name, value in top.items() if name != logprobs["tokens"][0]}
                )
                logprobs["top_logprobs"] = [
                    {name: value for name, value in top.items() if value is not None}
                ]
        return answers

    return staticmethod(alter)


PLANTED = {
    "a label is missing": (lambda top: {next(iter(top)): None}, "no log-probability of 1 of"),
    "a label is above 0": (lambda top: {next(iter(top)): 0.5}, "above 0"),
    "labels are likelier than the likeliest": (lambda top: dict.fromkeys(top, -1e-9),
                                               "where the likeliest token has"),
    "labels are swapped": (lambda top: dict(zip(sorted(top, key=top.get),
                                                sorted(top.values())[::-1], strict=True)),
                           "contradicts itself"),
    "labels are those of another place": (lambda top: {name: value - 4 for name,
                                                       value in top.items()},
                                          "contradicts itself"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_wrong_or_missing_probabilities_are_refused_and_never_scored(folder, fault):  # noqa: F811
    change, problem = PLANTED[fault]
    flow = opened(folder, "word_analogies")
    with Endpoint() as endpoint:
        endpoint.alter = labelled(change)
        with pytest.raises(FlowError, match=problem):
            measure_accuracy(flow, serving(flow, endpoint.url))
        assert not (flow.workspace.results("base") / "accuracy.json").exists()
        endpoint.alter = RIGHT
        result = measure_accuracy(flow, serving(flow, endpoint.url))
    with Endpoint(labels=False) as endpoint:
        (flow.workspace.results("base") / "accuracy.json").unlink()
        assert measure_accuracy(flow, serving(flow, endpoint.url)).tasks == result.tasks, (
            "a wrong answer was kept"
        )
