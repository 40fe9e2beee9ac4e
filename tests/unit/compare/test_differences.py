"""The figures of a difference are those that independent code finds in the items."""

import json
import math

import factories
import numpy as np
import pytest
from factories import compare_int8, with_task
from statsmodels.stats.weightstats import DescrStatsW

from model_serve_flow.compare.differences import compare_suite, compare_task
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.clusters import cluster_key
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.measured import Item, Metric, TaskAccuracy

MARGINS = Verdict(suite_margin_points=3.0, task_margin_points=5.0, perplexity_margin_percent=3.0)


def compared(base, candidate):
    return compare_task(pair("task", base, candidate), MARGINS, 0)


def score_z(gained, lost, n, difference):
    """z of the paired score test, its restricted maximum likelihood found numerically:
    independent of statistics.py.
    """
    from scipy.optimize import minimize_scalar

    def unlikelihood(loss):
        shares = (
            (gained, loss + difference),
            (lost, loss),
            (n - gained - lost, 1 - 2 * loss - difference),
        )
        return -sum(count * math.log(share) for count, share in shares if count)

    low, high = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    loss = minimize_scalar(
        unlikelihood, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
    ).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * loss + difference - difference**2))


@pytest.mark.parametrize("name", ["w8a8-int8", "w4a16-int4"])
@pytest.mark.parametrize("task", ["mmlu_dev", "word_analogies"])
def test_figures_recomputed_from_the_items_in_the_files(name, task):
    from scipy.stats import norm

    files = [json.loads(factories.accuracy(model).model_dump_json()) for model in ("base", name)]
    base, candidate = (
        {item["id"]: item["acc"] for item in file["tasks"][task]["items"]} for file in files
    )
    n, lost = len(base), sum(base[id] == 1 and candidate[id] == 0 for id in base)
    gained = sum(base[id] == 0 and candidate[id] == 1 for id in base)
    found = factories.sample_comparison().candidate(name)
    d = found.accuracy[task]["acc"]

    assert (d.n, d.flips.right_to_wrong, d.flips.wrong_to_right) == (n, lost, gained)
    assert d.difference == pytest.approx(100 * (sum(candidate.values()) - sum(base.values())) / n)
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (
        gained + lost
    )
    assert d.mcnemar_p == pytest.approx(min(1.0, 2 * tail))
    for bound, z in zip(d.ci95, (1.959964, -1.959964), strict=True):
        assert score_z(gained, lost, n, bound / 100) == pytest.approx(z, abs=1e-3)
    assert d.noninferiority_p == pytest.approx(norm.sf(score_z(gained, lost, n, -0.05)), rel=1e-3)
    flipped = {item.id: item.became for item in found.flipped if item.task == task}
    assert flipped == {
        id: "right" if candidate[id] else "wrong" for id in base if base[id] != candidate[id]
    }


def test_sample_has_the_known_figures():
    analogies = factories.sample_comparison().candidates[0].accuracy["word_analogies"]["acc"]
    assert (analogies.n, analogies.unit, analogies.chance, analogies.near_chance) == (
        336,
        "points",
        25,
        False,
    )
    assert (analogies.base, analogies.candidate) == (
        pytest.approx(21400 / 336),
        pytest.approx(21300 / 336),
    )
    assert analogies.difference == pytest.approx(-100 / 336)
    assert (analogies.margin, analogies.recovery_percent) == (5.0, pytest.approx(100 * 213 / 214))
    detectable = 100 * paired.smallest_detectable_drop(336, 9 / 336)
    assert analogies.smallest_detectable_drop == pytest.approx(detectable)
    assert "Tango" in analogies.method


def test_a_task_decides_only_if_the_base_can_lose_the_margin_there():
    """Lower bounds of 1 %, 29 % and 39 % against guessing at 0, 25 and 25 %,
    with a margin of 5 points.
    """
    weak = compared(
        factories.choice_task(1000, 20, chance=None), factories.choice_task(1000, 20, chance=None)
    )["acc"]
    low = compared(factories.choice_task(1000, 310), factories.choice_task(1000, 310))["acc"]
    able = compared(factories.choice_task(1000, 420), factories.choice_task(1000, 420))["acc"]
    assert [d.too_weak for d in (weak, low, able)] == [True, True, False]
    assert [d.near_chance for d in (weak, low, able)] == [False, False, False]
    for d, right, floor in ((weak, 20, 0), (low, 310, 25), (able, 420, 25)):
        assert d.base_low == pytest.approx(100 * paired.wilson_interval(right, 1000).low)
        assert d.retention_limit == pytest.approx(0.05 * (d.base - floor))
        assert d.limit == (5.0 if d.too_weak else d.retention_limit) and d.retention_limit < 5.0
    assert compare_suite({"weak": {"acc": weak}, "low": {"acc": low}}, MARGINS) is None
    assert compare_suite({"weak": {"acc": weak}, "able": {"acc": able}}, MARGINS).n == 1000


def in_subjects(right, subjects=20, key="subject"):
    task = factories.scored_task(right)
    items = tuple(
        item.model_copy(update={"groups": {key: f"{key} {i % subjects}", "id": str(i)}})
        for i, item in enumerate(task.items)
    )
    return task.model_copy(update={"items": items})


def test_losses_that_come_in_clusters_count_as_clusters():
    """16 of 400 answers are lost and 16 gained: in one subject and in four, or over all of them."""
    number = np.arange(400)
    base, subject = number // 20 % 5 > 0, number % 20
    together = np.where(subject == 3, False, np.where((subject >= 7) & (subject <= 10), True, base))
    apart = base.copy()
    apart[20:36], apart[4:20] = False, True
    clustered, spread = (
        compared(in_subjects(base), in_subjects(c))["acc"] for c in (together, apart)
    )
    assert clustered.flips == spread.flips and clustered.difference == spread.difference == 0
    assert (clustered.clusters.key, clustered.clusters.count, clustered.clusters.decide) == (
        "subject",
        20,
        True,
    )
    assert clustered.clusters.design_effect > 5 > 2 > spread.clusters.design_effect
    assert clustered.ci95[1] - clustered.ci95[0] > 1.5 * (spread.ci95[1] - spread.ci95[0])
    assert clustered.noninferiority_p > 5 * spread.noninferiority_p
    assert "cluster" in clustered.method and "cluster" not in spread.method
    d = DescrStatsW(
        [100 * (together[subject == s].mean() - base[subject == s].mean()) for s in range(20)]
    )
    assert clustered.ci95 == pytest.approx(d.tconfint_mean())  # clusters of one size


@pytest.mark.parametrize(
    ("groups", "key"),
    [
        ([{"subject": f"s{i % 20}", "subject group": f"g{i % 4}"} for i in range(100)], "subject"),
        # single items, and strata
        ([{"subject": f"s{i}", "subject group": f"g{i % 4}"} for i in range(57)], None),
        ([{"passage": f"p{i // 3}", "subject": f"s{i % 12}"} for i in range(99)], "passage"),
        ([{"passage": f"p{i // 3}"} for i in range(99)] + [{}], None),
        ([{}] * 30, None),
    ],
)
def test_the_clusters_are_the_finest_group_of_several_items_each(groups, key):
    assert (
        cluster_key([Item(id=str(i), answer=None, groups=group) for i, group in enumerate(groups)])
        == key
    )


def test_recovery_is_not_given_where_it_would_mislead():
    int8 = factories.sample_comparison().candidates[0].accuracy
    assert int8["mmlu_dev"]["acc"].near_chance
    assert int8["mmlu_dev"]["acc"].recovery_percent is None
    assert int8["wikipedia"]["word_perplexity"].recovery_percent is None
    nothing = compared(
        factories.choice_task(50, 0, chance=None),
        factories.choice_task(50, 0, gained=3, chance=None),
    )
    assert nothing["acc"].recovery_percent is None


def test_perplexity_is_in_percent_and_bits_per_byte_is_the_same_test_in_another_unit():
    text = factories.sample_comparison().candidates[1].accuracy["wikipedia"]
    assert set(text) == {"word_perplexity", "bits_per_byte"}
    words, bits = text["word_perplexity"], text["bits_per_byte"]
    assert words.difference == pytest.approx(100 * (words.candidate / words.base - 1))
    assert (words.unit, bits.unit, words.higher_is_better) == ("percent", "bits/byte", False)
    assert bits.difference == pytest.approx(bits.candidate - bits.base)
    assert bits.difference / bits.margin == pytest.approx(
        math.log1p(words.difference / 100) / math.log1p(words.margin / 100)
    )
    assert words.noninferiority_p == bits.noninferiority_p > 0.999
    assert (words.flips, words.mcnemar_p) == (None, None)


def test_perplexity_at_its_margin_is_a_toss_up():
    at_margin = compared(factories.text_task(), factories.text_task(loss=math.log(1.03)))[
        "word_perplexity"
    ]
    assert at_margin.difference == pytest.approx(3.0, abs=0.2)
    assert 0.001 < at_margin.noninferiority_p < 0.999


def scored(values: dict[str, list[float]], higher_is_better: bool = True) -> TaskAccuracy:
    """A task without choices, of these metrics."""
    n = len(next(iter(values.values())))
    items = tuple(
        Item(id=str(i), answer="", **{name: series[i] for name, series in values.items()})
        for i in range(n)
    )
    metrics = {
        name: Metric(value=float(np.mean(series)), stderr=None, higher_is_better=higher_is_better)
        for name, series in values.items()
    }
    return TaskAccuracy(n=n, chance=None, metrics=metrics, items=items)


def test_a_rise_is_a_loss_where_lower_is_better():
    base, worse = (
        [0.2 + 0.01 * (i % 7) + shift * (1 + i % 3) for i in range(40)] for shift in (0, 0.05)
    )
    error = compared(scored({"error": base}, False), scored({"error": worse}, False))["error"]
    assert error.difference == pytest.approx(5 * sum(1 + i % 3 for i in range(40)) / 40)
    assert 0 < error.ci95[0] < error.difference < error.ci95[1]
    assert error.noninferiority_p > 0.999
    assert (error.flips, error.mcnemar_p, error.recovery_percent) == (None, None, None)
    assert "bootstrap" in error.method
    half_width = (error.ci95[1] - error.ci95[0]) / 2
    assert error.smallest_detectable_drop == pytest.approx(half_width * 2.8016 / 1.95996, rel=1e-3)


def test_the_perplexity_of_answers_is_a_loss_where_it_rises():
    """LAMBADA's items carry log-likelihoods, of which higher is better,
    while of their perplexity lower is.
    """
    rng = np.random.default_rng(3)
    base = -rng.gamma(2, 1, 60)
    tasks = {}
    for name, shift in (("base", 0.0), ("better", 0.2), ("worse", -0.2)):
        values = np.minimum(base + shift * rng.uniform(0.5, 1.5, 60), 0)
        task = scored({"perplexity": values.tolist(), "acc": (values > -1).astype(float).tolist()})
        figure = Metric(value=math.exp(-values.mean()), stderr=None, higher_is_better=False)
        tasks[name] = task.model_copy(update={"metrics": {**task.metrics, "perplexity": figure}})
    better, worse = (
        compared(tasks["base"], tasks[name])["perplexity"] for name in ("better", "worse")
    )
    for d, name in ((better, "better"), (worse, "worse")):
        figures = [tasks[side].metrics["perplexity"].value for side in ("base", name)]
        assert (d.base, d.candidate) == tuple(figures)
        assert (d.unit, d.higher_is_better, d.margin) == ("percent", False, 3.0)
        assert d.difference == pytest.approx(100 * (figures[1] / figures[0] - 1))
    assert better.difference < 0 < worse.difference
    assert better.noninferiority_p < 0.001 and worse.noninferiority_p > 0.999
    wrong = tasks["worse"].metrics | {"perplexity": tasks["base"].metrics["perplexity"]}
    with pytest.raises(FlowError, match="task: perplexity is given as"):
        compared(tasks["base"], tasks["worse"].model_copy(update={"metrics": wrong}))


def test_a_figure_of_the_whole_task_only_is_left_out():
    task = scored({"exact_match,strict-match": [i % 2 for i in range(40)]})
    whole = {
        **task.metrics,
        "aggregate_only": Metric(value=1.0, stderr=None, higher_is_better=True),
    }
    task = task.model_copy(update={"metrics": whole})
    assert set(compared(task, task)) == {"exact_match,strict-match"}
    with pytest.raises(FlowError, match="task cannot be compared: no metric has a value per item"):
        compared(
            *[task.model_copy(update={"metrics": {"aggregate_only": whole["aggregate_only"]}})] * 2
        )


def test_suite_averages_the_tasks_that_can_decide_each_counting_the_same():
    generated = [float(i % 4 > 0) for i in range(120)]
    worse = [value if i > 5 else 0.0 for i, value in enumerate(generated)]
    tasks = {
        # near chance
        "mmlu_dev": compared(factories.choice_task(273, 78), factories.choice_task(273, 70)),
        "word_analogies": compared(
            factories.choice_task(336, 214), factories.choice_task(336, 214, 4, 5)
        ),
        "gsm8k": compared(scored({"exact_match": generated}), scored({"exact_match": worse})),
        "wikipedia": compared(factories.text_task(), factories.text_task(loss=0.1)),
    }
    suite = compare_suite(tasks, MARGINS)
    parts = [tasks["word_analogies"]["acc"], tasks["gsm8k"]["exact_match"]]
    assert (suite.n, suite.margin) == (336 + 120, 3.0)
    assert suite.difference == pytest.approx(sum(d.difference for d in parts) / 2)
    below = math.hypot(*(d.difference - d.ci95[0] for d in parts)) / 2
    assert suite.ci95[0] == pytest.approx(suite.difference - below)
    assert suite.recovery_percent == pytest.approx(100 * suite.candidate / suite.base)
    assert suite.noninferiority_p > 0.025
    assert compare_suite({"mmlu_dev": tasks["mmlu_dev"]}, MARGINS) is None


def test_edited_figures_and_texts_are_refused():
    result = factories.accuracy("w8a8-int8")
    task = result.tasks["word_analogies"]
    better = task.model_copy(
        update={"items": (*task.items[:-1], task.items[-1].model_copy(update={"acc": 1.0}))}
    )
    with pytest.raises(FlowError, match=r"word_analogies: acc is given as .*, but its items give"):
        compare_int8(accuracy=with_task(result, "word_analogies", better))
    text = result.tasks["wikipedia"]
    longer = text.model_copy(
        update={"items": (text.items[0].model_copy(update={"words": 999.0}), *text.items[1:])}
    )
    with pytest.raises(FlowError, match="wikipedia: words of a document differ"):
        compare_int8(accuracy=with_task(result, "wikipedia", longer))
