"""Which prompts are asked for lm-eval's log-likelihoods:
never more tokens than an echo of every choice.
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_serve_flow.measure import scoring
from model_serve_flow.measure.scoring import NextToken, Question, Step, Wanted, batches, plan

BLOCK = 16
LONG = tuple(range(100, 400))  # a context of 300 tokens


def wanted(*pairs):
    return [Wanted(tuple(context), tuple(continuation)) for context, continuation in pairs]


def logprob(prompt, token):
    """A model: the log-probability of a token after a prompt, of a vocabulary of ten tokens."""
    scores = [(sum(prompt) * 7 + len(prompt) + 3 * other) % 11 for other in range(10)]
    return scores[token] - math.log(sum(map(math.exp, scores)))


def read(questions):
    """Place -> answer of that model."""
    answers = {}
    for question in questions:
        found = {}
        for step in question.steps:
            everything = {token: logprob(step.prompt, token) for token in range(10)}
            found[step.prompt] = NextToken(
                {label: everything[label] for label in step.labels}, max(everything.values())
            )
        answers |= question.answers(found)
    return answers


def echo(one):
    """What an echo of context and continuation gives."""
    values = [
        (logprob(one.context + one.continuation[:length], token), token)
        for length, token in enumerate(one.continuation)
    ]
    greedy = all(
        value == max(logprob(one.context + one.continuation[:length], token) for token in range(10))
        for length, (value, _) in enumerate(values)
    )
    return sum(value for value, _ in values), greedy


def test_choices_of_one_token_are_one_prompt():
    letters = wanted(*(((1, 2, 3), (letter,)) for letter in (7, 8, 9, 6)))
    (question,) = plan(letters, None)
    assert question.steps == (Step((1, 2, 3), (6, 7, 8, 9)),)
    assert sorted(question.continuations) == [0, 1, 2, 3]


def test_without_a_prefix_cache_longer_choices_are_echoed():
    mixed = wanted(((1, 2), (3,)), ((1, 2), (4, 5)), ((1, 2), (6,)), ((9,), (4, 5)))
    (question,) = plan(mixed, None)
    assert sorted(question.continuations) == [0, 2]


def test_short_choices_after_a_long_context_are_read_token_by_token():
    choices = [(1, 2), (1, 3), (4, 5, 6), tuple(range(10)) * 30]
    (question,) = plan(wanted(*((LONG, choice) for choice in choices)), BLOCK)
    assert sorted(question.continuations) == [0, 1, 2], (
        "300 tokens are cheaper to echo than to read one by one"
    )
    assert question.steps == (
        Step(LONG, (1, 4)),
        Step((*LONG, 1), (2, 3)),
        Step((*LONG, 4), (5,)),
        Step((*LONG, 4, 5), (6,)),
    )


def test_after_a_short_context_an_echo_is_cheaper():
    assert (
        plan(wanted(*(((1, 2), tuple(range(start, start + 8))) for start in range(4))), BLOCK) == []
    )


def test_contexts_that_begin_alike_follow_each_other():
    contexts = [(5, 1), (2, 9, 9), (5, 1, 7), (2, 9), (5, 0)]
    found = plan(wanted(*((context, (1,)) for context in contexts)), BLOCK)
    assert [question.context for question in found] == sorted(contexts)


def test_what_has_no_next_token_to_read_is_left_to_the_echo():
    many = wanted(*(((1,), (label,)) for label in range(scoring.MOST_LABELS + 1)))
    assert plan(many, BLOCK) == []  # more labels than a request may have
    # a context that was cut away; an empty continuation
    assert plan(wanted(((), (1,)), ((1, 2), ())), BLOCK) == []


TOKENS = st.integers(0, 9)
CONTEXTS = st.lists(TOKENS, min_size=1, max_size=40).map(tuple)
CHOICES = st.lists(st.lists(TOKENS, max_size=6).map(tuple), min_size=1, max_size=6)


@given(st.lists(st.tuples(CONTEXTS, CHOICES), max_size=5), st.sampled_from([None, 4, 16, 128]))
def test_answers_are_those_of_the_echo_and_cost_no_more(questions, block):
    everything = wanted(
        *((context, choice) for context, choices in questions for choice in choices)
    )
    found = plan(everything, block)
    for place, answer in read(found).items():
        likelihood, greedy = echo(everything[place])
        assert answer == (pytest.approx(likelihood), greedy)
    tokens = sum(question.computed(block or 10_000) for question in found)
    assert tokens <= sum(
        everything[place].tokens for question in found for place in question.continuations
    )


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 32))
def test_batches_hold_every_question_once_and_requests_every_step(widths, size):
    questions = [
        Question((place,), {width: tuple(range(width)) for width in range(1, width + 1)})
        for place, width in enumerate(widths)
    ]
    runs = list(batches(questions, size))
    assert [question for run in runs for question in run] == questions
    assert all(sum(len(question.steps) for question in run) >= size for run in runs[:-1])
    steps = [step for question in questions for step in question.steps]
    requests = list(scoring.requests(steps, size))
    assert [step for request in requests for step in request] == steps
    assert all(len(request) <= size for request in requests)


def test_a_request_has_no_more_labels_than_vllm_takes():
    steps = [Step((place,), tuple(range(50 * place, 50 * place + 50))) for place in range(5)]
    assert [len(request) for request in scoring.requests(steps, 32)] == [2, 2, 1]
    alike = [Step((place,), (1, 2, 3, 4)) for place in range(40)]
    assert [len(request) for request in scoring.requests(alike, 32)] == [32, 8]
