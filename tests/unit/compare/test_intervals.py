"""Table, chart and verdict never differ:
over random data the interval shown is clear of the limit as decided.
"""

import functools

import factories
import numpy as np
import pytest

from model_serve_flow.compare import reading as reading_module
from model_serve_flow.compare.differences import compare_suite, compare_task
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.stats import bootstrap
from model_serve_flow.compare.stats.looks import sequential_p
from model_serve_flow.compare.verdict import decide, with_items_to_settle
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.measured import Item, Metric, TaskAccuracy
from model_serve_flow.report.formatting import interval
from model_serve_flow.report.tables import reading

MARGINS = Verdict(suite_margin_points=2.0, task_margin_points=4.0, perplexity_margin_percent=3.0)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 999)


def flipped(rng, n, clustered, chance):
    """A base and a candidate that gains and loses some answers, in clusters or not."""
    base = rng.random(n) < rng.uniform(0.45, 0.95)
    rate, loss = rng.uniform(0, 0.15), rng.uniform(-0.02, 0.1)
    candidate = np.where(base, rng.random(n) >= rate + loss, rng.random(n) < rate)
    groups = [{"groups": {"subject": f"s{i // 10}"} if clustered else {}} for i in range(n)]
    return [factories.scored_task(side, chance, groups.__getitem__) for side in (base, candidate)]


def shared(rng, n, lower):
    """The same for a share per item; where lower is better an error."""
    base = rng.beta(4, 2, n)
    candidate = np.clip(
        base - rng.uniform(-0.01, 0.06) + rng.uniform(0, 0.2) * rng.standard_normal(n), 0, 1
    )
    sides = []
    for side in (1 - base, 1 - candidate) if lower else (base, candidate):
        items = tuple(Item(id=str(i), answer="", f1=value) for i, value in enumerate(side.tolist()))
        metrics = {"f1": Metric(value=side.mean(), stderr=None, higher_is_better=not lower)}
        sides.append(TaskAccuracy(n=n, chance=None, metrics=metrics, items=items))
    return sides


def texts(rng):
    loss = rng.uniform(-0.02, 0.08)
    documents = int(rng.integers(8, 40))
    return [factories.text_task(documents, one, seed=3) for one in (0.0, loss)]


@functools.cache
def family(seed):
    """One to six tasks of any kind, of any number of items."""
    rng = np.random.default_rng([5, seed])
    kinds = {
        "binary": lambda n: flipped(rng, n, False, 0.25),
        "written": lambda n: flipped(rng, n, False, None),
        "clustered": lambda n: flipped(rng, n - n % 10, True, 0.25),
        "share": lambda n: shared(rng, n, False),
        "error": lambda n: shared(rng, n, True),
        "text": lambda n: texts(rng),
    }
    chosen = rng.choice(list(kinds), rng.integers(1, 7))
    tasks = {
        f"{kind} {i}": kinds[kind](int(rng.integers(150, 900))) for i, kind in enumerate(chosen)
    }
    return {name: compare_task(pair(name, *sides), MARGINS, 0) for name, sides in tasks.items()}


SEEDS = range(40)
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def test_the_interval_shown_is_clear_of_the_limit_exactly_where_the_verdict_says_so():
    seen = set()
    for seed in SEEDS:
        found, _ = with_items_to_settle(family(seed), None)
        for metrics in found.values():
            for d in metrics.values():
                if d.adjusted_p is None or d.too_few is not None:
                    assert d.simultaneous_ci95 is None
                    continue
                within, beyond = (p <= 0.025 for p in d.adjusted_p)
                low, high = (
                    d.shown_ci95 if d.higher_is_better else (-d.shown_ci95[1], -d.shown_ci95[0])
                )
                estimate = d.difference if d.higher_is_better else -d.difference
                assert (low >= -d.limit, high <= -d.limit) == (within, beyond), (seed, d)
                assert low <= estimate <= high
                word = "within margin" if within else "beyond margin" if beyond else "undecided"
                assert reading(d).startswith(word)
                assert reading_module.within_margin(d) == within
                seen.add((word, d.unit, d.higher_is_better))
    assert {word for word, *_ in seen} == {"within margin", "beyond margin", "undecided"}
    assert len(seen) >= 7


def test_the_verdict_and_its_sentences_are_what_the_intervals_say():
    """SHIP exactly where every interval shown is clear of its limit, the suite's among them."""
    verdicts = set()
    for seed in SEEDS:
        differences = family(seed)
        suite = compare_suite(differences, MARGINS)
        found, suite = with_items_to_settle(differences, suite)
        verdict, reasons, _ = decide(differences, suite)
        named = {
            task: d
            for task, metrics in found.items()
            for d in metrics.values()
            if d.simultaneous_ci95
        }
        for task, d in named.items():
            (sentence,) = [one for one in reasons if f"{task} changed by" in one]
            assert "interval {:+.1f} to {:+.1f}, n = {}".format(*d.shown_ci95, d.n) in sentence
            assert (": within the accepted" in sentence) == clear(d)
        others = {task: metrics for task, metrics in found.items() if task not in named}
        if not others and suite is not None:
            assert (verdict == "SHIP") == all(map(clear, [*named.values(), suite]))
        verdicts.add(verdict)
    assert verdicts == {"SHIP", "DO NOT SHIP", "INCONCLUSIVE"}


def test_the_interval_shown_agrees_with_the_p_values_of_all_looks():
    """Of four looks the first three tell nothing,
    or the first one has settled the question already.
    """
    agreed = set()
    for seed in SEEDS:
        differences = {task: {name: looked(d, seed) for name, d in metrics.items()}
                       for task, metrics in family(seed).items()}  # fmt: skip
        suite = compare_suite(differences, MARGINS)
        found, suite = with_items_to_settle(
            differences, None if suite is None else looked(suite, seed)
        )
        shown = [d for metrics in found.values() for d in metrics.values() if d.simultaneous_ci95]
        for d in [*shown, *filter(None, [suite])]:
            within, beyond = (p <= 0.025 for p in d.adjusted_p)
            low, high = d.shown_ci95 if d.higher_is_better else (-d.shown_ci95[1], -d.shown_ci95[0])
            assert (low >= -d.limit, high <= -d.limit) == (within, beyond), (seed, d)
            estimate = d.difference if d.higher_is_better else -d.difference
            assert low <= high
            if seed % 4:  # no early look has settled anything that the last one does not show
                assert low <= estimate <= high
            agreed.add((within, beyond, within != (d.decision_p <= 0.025)))
    assert {
        (True, False, False),
        (False, True, False),
        (False, False, True),
        (True, False, True),
    } <= agreed


def looked(d, seed):
    """The difference as if seen at four looks: what the last one says,
    or that the first one was clear.
    """
    if d.decision_p is None:
        return d
    early = 1e-6 if seed % 4 == 0 and abs(d.decision_p - 0.5) < 0.49 else 0.9
    within = sequential_p([early, 0.9, 0.9, d.decision_p], QUARTERS)
    return d.model_copy(
        update={"look_p": (within, sequential_p([0.9, 0.9, 0.9, 1 - d.decision_p], QUARTERS))}
    )


def clear(d):
    return d.shown_ci95[0] >= -d.limit if d.higher_is_better else d.shown_ci95[1] <= d.limit


def test_one_task_by_itself_keeps_its_interval():
    differences = {
        "q": compare_task(
            pair("q", *flipped(np.random.default_rng(1), 600, False, None)), MARGINS, 0
        )
    }
    found, _ = with_items_to_settle(differences, None)
    d = found["q"]["acc"]
    assert d.simultaneous_ci95 == pytest.approx(d.ci95)


def test_the_table_shows_the_simultaneous_interval_and_the_file_has_both():
    d = factories.sample_comparison().candidates[0].accuracy["word_analogies"]["acc"]
    assert d.simultaneous_ci95[0] < d.ci95[0] < d.ci95[1] < d.simultaneous_ci95[1]
    low, high = d.simultaneous_ci95
    assert interval(d) == f"{low:+.1f} to {high:+.1f}".replace("-", "−")
