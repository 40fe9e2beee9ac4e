"""Tokens are drawn from the softmax, by the request's own random numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from support.serving import serve
from transformers import AutoModelForCausalLM

from serving_from_scratch.core.batching import ChunkedPrefill, Continuous, OneByOne
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.model.loading import ModelManager
from serving_from_scratch.model.sampling import choose, distribution

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, 3.0])


@pytest.fixture(scope="session")
def executor(tiny_llama):
    return InProcess(ModelManager().runner(OPTIONS(tiny_llama)))


def OPTIONS(folder):
    return ModelOptions(str(folder), "float32", length=576)


def scheduler_of(strategy):
    return Scheduler(strategy, OPTIONS("").memory(), 8)


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_draws_follow_the_softmax(vary):
    sampling = SamplingParameters(temperature=0.8)
    numbers = [(n, 3) if vary == "seed" else (3, n) for n in range(20_000)]
    drawn = [choose(LOGITS, sampling, *pair) for pair in numbers]
    expected = torch.softmax(LOGITS.double() / 0.8, 0).numpy() * 20_000
    assert chisquare(np.bincount(drawn, minlength=8), expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"top_k": 3}, [7, 0, 1]),
        ({"top_p": 0.5}, [7]),  # 0.53 alone
        ({"top_p": 0.6}, [7, 0]),
        ({"top_k": 4, "top_p": 0.9}, [7, 0, 1]),  # of the four that are left: 0.61, 0.22, 0.14
        ({"top_k": 1}, [7]),
        ({"top_k": 100}, list(range(8))),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(limits, kept):
    found = distribution(LOGITS, SamplingParameters(temperature=1.0, **limits))
    softmax = torch.softmax(LOGITS, 0)
    expected = torch.zeros(8)
    expected[kept] = softmax[kept] / softmax[kept].sum()
    assert torch.allclose(found, expected)


def sampled_requests(reference):
    for place, prompt in enumerate(reference.prompts):
        sampling = SamplingParameters(24, temperature=1.0, top_p=0.95, seed=place, ignore_eos=True)
        yield Request(str(place), prompt, sampling)


def test_one_seed_gives_one_text_whatever_the_batch(executor, reference):
    requests = list(sampled_requests(reference))
    alone = serve(scheduler_of(OneByOne()), executor, requests).answers
    for strategy in (Continuous(), ChunkedPrefill(48)):
        together = serve(scheduler_of(strategy), executor, requests, seed=5).answers
        assert together == alone
    assert len({token for answer in alone.values() for token in answer}) > 100


class Recall:
    """Guesses from texts that it knows: three tokens, of which the third is sometimes wrong."""

    cost = 0.0

    def __init__(self, texts):
        self.texts = texts

    def propose(self, tokens):
        known = [text for text in self.texts if text[: len(tokens)] == list(tokens)]
        if not known:
            return ()
        guesses = known[0][len(tokens) : len(tokens) + 3]
        return [*guesses[:2], 7] if len(tokens) % 2 else guesses


def test_guesses_change_no_sampled_text(executor, reference):
    requests = list(sampled_requests(reference))
    alone = serve(scheduler_of(OneByOne()), executor, requests)
    proposer = Recall([sequence.tokens for sequence in alone.finished.values()])
    options = OPTIONS("")
    scheduler = Scheduler(Continuous(), options.memory(), 8, proposer=proposer)
    guessed = serve(scheduler, executor, requests, seed=4)
    assert guessed.answers == alone.answers
    chunks = [chunk for step in guessed.steps for chunk in step.chunks]
    assert len(chunks) < sum(len(step.chunks) for step in alone.steps) * 0.6


def test_tokens_drawn_with_guesses_follow_the_models_distribution(executor, tiny_llama):
    sampling = SamplingParameters(temperature=2.0, top_k=8)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    text, expected = (5, 6, 7), []
    for _ in range(2):  # the guesses are the likeliest tokens
        scores = model(torch.tensor([text])).logits[0, -1].detach()
        expected.append(distribution(scores, sampling))
        text = (*text, int(scores.argmax()))

    def chunk(seed):
        return Chunk(str(seed), seed % 8, 0, text, True, sampling, seed, guesses=2)

    steps = [Step(tuple(map(chunk, range(start, start + 8)))) for start in range(0, 4_000, 8)]
    outcomes = [outcome.tokens for step in steps for outcome in executor.step(step).outcomes]
    right = [tokens for tokens in outcomes if tokens[0] == text[3]]
    assert all(len(tokens) > 1 for tokens in right) and len(right) > 300
    assert all(len(tokens) == 1 for tokens in outcomes if tokens[0] != text[3])
    for place, drawn in enumerate((outcomes, right)):
        kept = expected[place].nonzero().flatten()
        counts = [sum(tokens[place] == token for tokens in drawn) for token in kept]
        shares = expected[place][kept].double().numpy()
        assert sum(counts) == len(drawn)
        assert chisquare(counts, shares / shares.sum() * len(drawn)).pvalue > 0.001


def test_a_request_without_a_seed_gets_another_text_each_time(executor):
    sampling = SamplingParameters(24, temperature=1.0)
    requests = [Request(str(place), (5, 6, 7), sampling) for place in range(4)]
    answers = serve(scheduler_of(Continuous()), executor, requests).answers
    assert len(set(map(tuple, answers.values()))) == 4


def test_log_probabilities_are_those_of_transformers(executor, tiny_llama, reference):
    prompt = reference.prompts[2]
    sampling = SamplingParameters(8, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    for strategy in (Continuous(), ChunkedPrefill(50)):
        request = Request("a", prompt, sampling)
        ended = serve(scheduler_of(strategy), executor, [request]).finished["a"]
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        ids = torch.tensor([ended.tokens])
        expected = torch.log_softmax(model(ids).logits[0], -1)[:-1]
        entries = [*ended.prompt_logprobs, *ended.logprobs]
        assert [entry.token for entry in entries] == ended.tokens[1:]
        found = torch.tensor([entry.logprob for entry in entries])
        assert torch.allclose(found, expected[range(len(entries)), ids[0, 1:]], atol=1e-4)
        assert [len(entry.top) for entry in entries] == [2] * (len(prompt) - 1) + [3] * 8
        assert all(entry.top[0][0] == entry.token for entry in ended.logprobs)


def test_embeddings_are_the_same_alone_and_in_a_batch(executor, tiny_llama, reference):
    requests = [Request(str(i), prompt, embed=True) for i, prompt in enumerate(reference.prompts)]
    alone = serve(scheduler_of(OneByOne()), executor, requests).finished
    batch = serve(scheduler_of(ChunkedPrefill(64)), executor, requests, seed=2).finished
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).model
    for request in requests:
        one, other = (torch.tensor(found[request.id].embedding) for found in (alone, batch))
        expected = model(torch.tensor([request.prompt])).last_hidden_state[0, -1]
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(one, expected / expected.norm(), atol=1e-5)
