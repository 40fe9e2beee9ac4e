"""Distribution shift and noise floor are those of the files,
and other texts or tokens are refused.
"""

import dataclasses
import math

import factories
import numpy as np
import pytest

from model_serve_flow.compare.distribution_shift import measure_shift, noise_floor
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.divergence import OwnTokens, kl_lower_bound
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.results.compared import Flips

BASE = factories.distribution()


def bucketed(ours, theirs):
    """KL over the tokens both name, with everything else as one bucket: written out,
    token by token.
    """
    shared = ours.keys() & theirs.keys()
    rest = 1 - sum(ours[i] for i in shared), 1 - sum(theirs[i] for i in shared)
    return sum(ours[i] * math.log(ours[i] / theirs[i]) for i in shared) + rest[0] * math.log(
        rest[0] / rest[1]
    )


@pytest.mark.parametrize("name", ["w8a8-int8", "w4a16-int4"])
def test_shift_recomputed_token_by_token(name):
    other = factories.distribution(name)
    divergences, buckets, agreements = [], [], []
    for one, two in zip(BASE.documents, other.documents, strict=True):
        for place in range(39):
            ours, theirs = (
                dict(zip(d.top_ids[place], np.exp(d.top_logprobs[place]), strict=True))
                for d in (one, two)
            )
            buckets.append(bucketed(ours, theirs))
            rows = [
                np.array([row[place]]) for d in (one, two) for row in (d.top_ids, d.top_logprobs)
            ]
            own = [
                np.array([value])
                for value in (one.tokens[place + 1], *(d.own_logprobs[place] for d in (one, two)))
            ]
            divergences.extend(kl_lower_bound(*rows, OwnTokens(*own)))
            agreements.append(max(ours, key=ours.get) == max(theirs, key=theirs.get))
    found = measure_shift(BASE, other, 0)
    kl, (low, high) = found.kl, found.agreement_ci95
    assert kl.mean == pytest.approx(np.mean(divergences)) and kl.mean > np.mean(buckets)
    assert kl.p99 == pytest.approx(np.quantile(divergences, 0.99))
    assert kl.ci95[0] < kl.mean < kl.ci95[1] and kl.p99_ci95[0] < kl.p99 <= kl.p99_ci95[1]
    assert (kl.k, kl.tokens) == (5, 6 * 39)
    assert found.agreement == pytest.approx(np.mean(agreements))
    assert low < found.agreement < high


def test_equal_distributions_do_not_diverge():
    found = measure_shift(BASE, factories.distribution("w8a8-int8", noise=0.0), 0)
    assert (found.kl.mean, found.kl.p99, found.agreement) == (0, 0, 1.0)
    # six documents: no exception seen
    assert found.agreement_ci95 == (pytest.approx(0.025 ** (1 / 6)), 1.0)


def test_results_without_the_texts_own_tokens_are_compared_by_the_likeliest_alone():
    other = factories.distribution("w4a16-int4")
    bare = [document.model_copy(update={"own_logprobs": ()}) for document in other.documents]
    without = measure_shift(BASE, other.model_copy(update={"documents": tuple(bare)}), 0)
    assert 0 < without.kl.mean < measure_shift(BASE, other, 0).kl.mean


def test_sample_tells_the_engines_noise_from_the_candidates():
    int8, int4 = factories.sample_comparison().candidates
    assert int8.noise_floor == int4.noise_floor
    assert int8.noise_floor.kl.mean < int8.kl.ci95[0] < int8.kl.ci95[1] < int4.kl.ci95[0]
    assert int8.noise_floor.top1_agreement > int8.top1_agreement > int4.top1_agreement


def test_noise_floor_counts_the_flips_of_every_task_of_zeros_and_ones():
    floor = noise_floor(factories.base(), 0)
    assert floor.flips == {
        "mmlu_dev": Flips(right_to_wrong=1, wrong_to_right=1),
        "word_analogies": Flips(right_to_wrong=0, wrong_to_right=1),
    }
    assert floor.items == {"mmlu_dev": 137, "word_analogies": 168}
    assert noise_floor(dataclasses.replace(factories.base(), accuracy_again=None), 0) is None
    answers_only = noise_floor(dataclasses.replace(factories.base(), distribution_again=None), 0)
    assert (answers_only.flips, answers_only.kl, answers_only.top1_agreement) == (
        floor.flips,
        None,
        None,
    )


def test_noise_floor_is_a_rate_with_an_interval_weighted_by_the_items_of_the_tasks():
    """2 of 137 and 1 of 168 flipped, of tasks with 273 and 336 items:
    the sample took one half of each.
    """
    floor = noise_floor(factories.base(), 0)
    low, high = floor.rate.ci95
    assert floor.rate.value == pytest.approx((273 * 2 / 137 + 336 * 1 / 168) / 609)
    pooled = paired.wilson_interval(3, 305)  # what one sample of the same size would tell
    assert (low, high) == pytest.approx((pooled.low, pooled.high), abs=0.004)
    quiet = {
        name: factories.every_second(task) for name, task in factories.accuracy().tasks.items()
    }
    again = factories.accuracy_again().model_copy(
        update={"tasks": quiet | {"wikipedia": factories.text_task()}}
    )
    none = noise_floor(dataclasses.replace(factories.base(), accuracy_again=again), 0).rate
    assert none.value == 0 == none.ci95[0] and 0.005 < none.ci95[1] < 0.03


def test_a_text_alone_has_no_rate_of_flips():
    again = factories.accuracy_again().model_copy(update={"tasks": {}})
    floor = noise_floor(dataclasses.replace(factories.base(), accuracy_again=again), 0)
    assert (floor.flips, floor.items, floor.rate) == ({}, {}, None)


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        (280, "mmlu_dev, item 273: the base has no such item"),
        (100, "mmlu_dev: the second measurement of the base has 100 items, not 137"),
    ],
)
def test_second_measurement_of_other_items_is_refused(items, problem):
    again = factories.accuracy_again()
    other = factories.with_task(again, "mmlu_dev", factories.choice_task(items, 78))
    with pytest.raises(FlowError, match=problem):
        noise_floor(dataclasses.replace(factories.base(), accuracy_again=other), 0)


def with_document(result, **changes):
    first, *rest = result.documents
    return result.model_copy(update={"documents": (first.model_copy(update=changes), *rest)})


def test_other_documents_tokens_and_k_are_refused():
    other = factories.distribution("w8a8-int8")
    with pytest.raises(FlowError, match="Document 0 was read as other tokens by w8a8-int8"):
        measure_shift(BASE, with_document(other, tokens=tuple(range(40))), 0)
    with pytest.raises(
        FlowError, match=r"w8a8-int8 are not of the base's documents: 6 .* 5 for w8a8-int8"
    ):
        measure_shift(BASE, other.model_copy(update={"documents": other.documents[:5]}), 0)
    with pytest.raises(FlowError, match="5 likeliest tokens for base, 6 with 4 for w8a8-int8"):
        measure_shift(BASE, other.model_copy(update={"k": 4}), 0)


def test_probabilities_that_are_none_are_refused():
    certain = tuple((0.0,) * 5 for _ in range(39))
    with pytest.raises(
        FlowError, match=r"distributions of w8a8-int8 cannot be compared: .* more than 1"
    ):
        measure_shift(
            BASE, with_document(factories.distribution("w8a8-int8"), top_logprobs=certain), 0
        )
