"""Computes the paired difference in every metric of a task and in the average over tasks.

Each difference has its interval and its test against the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from numpy.typing import NDArray

from model_serve_flow.compare.comparability import REMEASURE
from model_serve_flow.compare.pairs import Pairs, count_flips
from model_serve_flow.compare.reading import PRIMARY_METRICS, primary_metric
from model_serve_flow.compare.repeats import repeated
from model_serve_flow.compare.secondary import gross_loss
from model_serve_flow.compare.stats import paired
from model_serve_flow.compare.stats.clusters import ClusteredMean, cluster_key
from model_serve_flow.compare.stats.paired import Interval, PairedMean
from model_serve_flow.compare.stats.texts import PairedLoss
from model_serve_flow.compare.tested import Drawn, Sensitivity, Tested, drawn, sensitivity
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.compared import Clusters, Difference, Tail, Unit
from model_serve_flow.flow.results.measured import Metric, TaskAccuracy

TEXT_KEYS = ("loglikelihood", "words", "bytes")  # values of an item of a perplexity task
# LAMBADA's metric: exp(-mean). Its values are log-likelihoods, where higher is better.
LOGLIKELIHOOD_METRIC = "perplexity"
AGGREGATE_TOLERANCE = 1e-6
COLLAPSE = math.log(2)  # nats per word; a document's perplexity doubles with this rise

TANGO = "Tango's score interval for paired proportions"
BOOTSTRAP = "BCa bootstrap over items"
CLUSTERED = "cluster-robust standard error, t over the clusters"
CAUTIOUS = "BCa and studentised bootstrap and jackknife t over {}, the most cautious"
MOVER = "MOVER over the tasks' intervals"

Differences = Mapping[str, Mapping[str, Difference]]  # task -> metric -> difference


def compare_task(pairs: Pairs, margins: Verdict, seed: int) -> dict[str, Difference]:
    """Computes the difference in each metric of one task that has a value per item.

    Metrics of answers are in points (values x 100), word perplexity in percent of the base's, bits
    per byte in bits/byte.

    Raises:
        FlowError: a value is NaN or infinite, or a figure of the task does not follow from its
            items.
    """
    tier = Tiers(margins.required, margins.advisory).of(pairs.task)
    try:
        text = all(pairs.values(key) is not None for key in TEXT_KEYS)
        found = (_text_differences if text else _answer_differences)(pairs, margins, seed)
        return {name: d.model_copy(update={"tier": tier}) for name, d in found.items()}
    except ValueError as error:
        raise FlowError(f"Task {pairs.task} cannot be compared: {error}.", REMEASURE) from error


def deciding(differences: Differences) -> dict[str, Difference]:
    """Returns task -> difference in the primary metric, for every task that can decide.

    These are the tasks of `asked` that have enough items for their test.
    """
    return {task: d for task, d in asked(differences).items() if d.too_few is None}


def asked(differences: Differences) -> dict[str, Difference]:
    """Returns task -> difference in the primary metric, for every task that can show a loss.

    The base must score high enough on the task (see `sensitivity`). Texts (perplexity tasks) are
    left out.
    """
    primaries = {task: metrics[primary_metric(metrics)] for task, metrics in differences.items()}
    return {task: d for task, d in primaries.items() if d.unit == "points" and not d.silent}


def compare_suite(differences: Differences, margins: Verdict) -> Difference | None:
    """Averages the differences of the deciding tasks, each with the same weight; higher is better.

    Returns:
        The macro average in points; None if no task can decide.
    """
    tasks = list(deciding(differences).values())
    if not tasks:
        return None
    interval = paired.mean_of_independent([oriented(d) for d in tasks])
    base, candidate = (
        math.fsum(getattr(d, side) for d in tasks) / len(tasks) for side in ("base", "candidate")
    )
    return Difference(
        n=sum(d.n for d in tasks),
        base=base,
        candidate=candidate,
        unit="points",
        higher_is_better=True,
        method=MOVER,
        margin=margins.suite_margin_points,
        noninferiority_p=paired.average_noninferiority_p(interval, margins.suite_margin_points),
        recovery_percent=_recovery(base, candidate)
        if all(d.higher_is_better for d in tasks)
        else None,
        smallest_detectable_drop=paired.smallest_detectable_change(interval),
        difference=interval.difference,
        ci95=(interval.low, interval.high),
    )


def oriented(difference: Difference) -> Interval:
    """Returns the difference with its interval, turned so that higher is better."""
    low, high = difference.ci95
    if difference.higher_is_better:
        return Interval(difference.difference, low, high)
    return Interval(-difference.difference, -high, -low)


# --- Answers ---


def _answer_differences(pairs: Pairs, margins: Verdict, seed: int) -> dict[str, Difference]:
    # lm-eval gives some metrics for the whole task only: they have no values per item to pair.
    scored = [metric for metric in pairs.base.metrics if pairs.values(metric) is not None]
    if not scored:
        raise ValueError("no metric has a value per item")
    differences = {metric: _answer_difference(pairs, metric, margins, seed) for metric in scored}
    _require_own_figure(pairs, primary_metric(scored))
    return differences


def _answer_difference(pairs: Pairs, metric: str, margins: Verdict, seed: int) -> Difference:
    if metric.partition(",")[0] == LOGLIKELIHOOD_METRIC:
        return _perplexity_difference(pairs, metric, margins, seed)
    base, candidate = pairs.scores(metric)
    binary = paired.is_binary(base) and paired.is_binary(candidate)
    alone = (_binary_test if binary else _mean_test)(pairs, metric, margins, seed)
    tested = _over_clusters(pairs, metric, margins, alone)
    weak, higher_is_better = tested.sensitivity, pairs.base.metrics[metric].higher_is_better
    misleading = weak.near_chance or not higher_is_better
    return Difference(
        n=base.size,
        base=100 * base.mean(),
        candidate=100 * candidate.mean(),
        difference=tested.interval.difference,
        ci95=(tested.interval.low, tested.interval.high),
        unit="points",
        higher_is_better=higher_is_better,
        method=tested.method,
        chance=None if pairs.base.chance is None else 100 * pairs.base.chance,
        near_chance=weak.near_chance,
        margin=margins.task_margin_points,
        base_low=weak.base_low,
        too_weak=weak.too_weak,
        retention=weak.retention,
        retention_p=weak.retention_p,
        retention_limit=weak.retention_limit,
        noninferiority_p=tested.loss.p,
        recovery_percent=None if misleading else _recovery(base.mean(), candidate.mean()),
        mcnemar_p=tested.mcnemar_p,
        flips=tested.flips,
        smallest_detectable_drop=tested.smallest_detectable_drop,
        clusters=tested.clusters,
        too_few=tested.loss.too_few,
        monte_carlo_error=tested.loss.monte_carlo_error,
        repeated=repeated(pairs, metric),
        gross_loss=gross_loss(pairs, metric) if binary else None,
    )


def _binary_test(pairs: Pairs, metric: str, margins: Verdict, seed: int) -> Tested:
    """Computes the interval and the tests of values of 0 and 1, without random resampling."""
    (base, candidate), good, chance = (
        pairs.scores(metric),
        pairs.oriented(metric),
        pairs.base.chance,
    )
    flips = count_flips(good[0] == 1, good[1] == 1)
    low = paired.wilson_interval(int(good[0].sum()), base.size).low
    kept = paired.binary_retention_p(*good, margins.retention, chance or 0.0)
    return Tested(
        interval=paired.paired_binary_difference(base, candidate).scaled(100),
        method=TANGO,
        loss=Drawn(paired.binary_noninferiority_p(*good, margins.task_margin_points / 100)),
        smallest_detectable_drop=100
        * paired.smallest_detectable_drop(base.size, flips.total / base.size),
        sensitivity=sensitivity(float(good[0].mean()), low, chance, kept, margins),
        mcnemar_p=paired.mcnemar_p(base, candidate),
        flips=flips,
    )


def _mean_test(pairs: Pairs, metric: str, margins: Verdict, seed: int) -> Tested:
    """Computes the interval and the tests of other values, from one set of bootstrap resamples."""
    tested, chance = PairedMean.of(*pairs.oriented(metric), seed), pairs.base.chance
    interval = tested.interval().scaled(100)
    higher_is_better = pairs.base.metrics[metric].higher_is_better
    if not higher_is_better:
        interval = Interval(-interval.difference, -interval.high, -interval.low)
    found = Tested(
        interval=interval,
        method=BOOTSTRAP,
        loss=drawn(pairs.base.n, tested.noninferiority_p(margins.task_margin_points / 100)),
        smallest_detectable_drop=paired.smallest_detectable_change(interval),
    )
    # An error without an upper limit has no worst value from which to count the score.
    if found.loss.too_few or not (higher_is_better or tested.bounded):
        return found
    kept = tested.retention_p(margins.retention, chance or 0.0)
    score, low = float(tested.base.mean()), tested.base_low()
    return replace(found, sensitivity=sensitivity(score, low, chance, kept, margins))


def _perplexity_difference(pairs: Pairs, metric: str, margins: Verdict, seed: int) -> Difference:
    """Compares the perplexity of right answers, from the log-likelihood of each answer.

    The difference is in percent of the base's perplexity, as for a text.
    """
    base, candidate = pairs.scores(metric)
    margin = margins.perplexity_margin_percent
    tested = PairedLoss.of(base, candidate, [1.0] * base.size, seed)
    return _text_difference(
        pairs,
        metric,
        [math.exp(-side.mean()) for side in (base, candidate)],
        tested.percent(),
        drawn(base.size, tested.noninferiority_p(math.log1p(margin / 100))),
        unit="percent",
        margin=margin,
        over="items",
    )


def _over_clusters(pairs: Pairs, metric: str, margins: Verdict, found: Tested) -> Tested:
    """Replaces the figures that change because the items come in clusters.

    Cluster-robust figures replace the figures over single items if the clustered interval is wider.

    Args:
        found: computed over single items; returned unchanged where they come in no clusters.
    """
    key = cluster_key(pairs.base.items)
    if key is None:
        return found
    labels, good = [item.groups[key] for item in pairs.base.items], pairs.oriented(metric)
    change = good[1] - good[0]
    whole, alone = ClusteredMean.of(change, labels), float(change.var(ddof=1) / change.size)
    interval = whole.interval().scaled(100)
    wider = interval.high - interval.low > found.interval.high - found.interval.low
    effect = whole.error**2 / alone if alone > 0 else None
    found = replace(
        found,
        clusters=Clusters(
            key=key,
            count=whole.clusters,
            design_effect=effect,
            decide=wider,
            degrees=whole.degrees,
        ),
    )
    if found.loss.too_few:
        return found
    # Clusters can widen the interval of the base's own score even if not that of the difference.
    found = replace(found, sensitivity=_cluster_sensitivity(pairs, labels, good, margins, found))
    return _clustered(found, whole, pairs.base.metrics[metric], margins) if wider else found


def _clustered(found: Tested, whole: ClusteredMean, metric: Metric, margins: Verdict) -> Tested:
    interval = whole.interval().scaled(100)
    if not metric.higher_is_better:
        interval = Interval(-interval.difference, -interval.high, -interval.low)
    return replace(
        found,
        interval=interval,
        method=CLUSTERED,
        loss=Drawn(whole.p_at_most(-margins.task_margin_points / 100)),
        smallest_detectable_drop=paired.smallest_detectable_change(interval),
    )


def _cluster_sensitivity(
    pairs: Pairs,
    labels: list[str],
    good: tuple[NDArray, NDArray],
    margins: Verdict,
    found: Tested,
) -> Sensitivity:
    """Computes the base's lower bound and the retention test over clusters.

    The more cautious of the figures over clusters and over single items counts. Where single items
    have no such figures, there are none.

    Args:
        good: values of base and candidate, turned so that higher is better.
        found: computed over single items.
    """
    single = found.sensitivity
    if single.base_low is None or single.retention_p is None:
        return single
    (base, candidate), chance = good, pairs.base.chance or 0.0
    low = min(single.base_low / 100, ClusteredMean.of(base, labels).interval().low)
    kept = ClusteredMean.of(
        candidate - margins.retention * base - (1 - margins.retention) * chance, labels
    )
    p = max(single.retention_p, kept.p_at_most(0.0) if kept.error else single.retention_p)
    return sensitivity(float(base.mean()), low, pairs.base.chance, p, margins)


def _recovery(base: float, candidate: float) -> float | None:
    return 100 * candidate / base if base > 0 else None


# --- Texts ---


def _text_differences(pairs: Pairs, margins: Verdict, seed: int) -> dict[str, Difference]:
    """Compares word perplexity and bits per byte of a corpus.

    Both are ratio estimators over the documents of the corpus.
    """
    (base, candidate), words, sizes = (pairs.scores(key) for key in TEXT_KEYS)
    for key, (ours, theirs) in (("words", words), ("bytes", sizes)):
        if (ours != theirs).any():
            raise FlowError(
                f"Task {pairs.task}: {key} of a document differ between base and candidate.",
                REMEASURE,
            )
    words, sizes = words[0], sizes[0]
    margin = math.log1p(margins.perplexity_margin_percent / 100)  # nats per word
    byte_margin = margin * words.sum() / sizes.sum()
    by_word, by_byte = (PairedLoss.of(base, candidate, units, seed) for units in (words, sizes))
    collapsed = int(((base - candidate) / words >= COLLAPSE).sum())
    tail = Tail(collapsed=collapsed, share_at_most=paired.share_at_most(collapsed, words.size))
    return {
        "word_perplexity": _text_difference(
            pairs,
            "word_perplexity",
            [math.exp(-side.sum() / words.sum()) for side in (base, candidate)],
            by_word.percent(),
            drawn(words.size, by_word.noninferiority_p(margin)),
            unit="percent",
            margin=margins.perplexity_margin_percent,
            tail=tail,
        ),
        "bits_per_byte": _text_difference(
            pairs,
            "bits_per_byte",
            [-side.sum() / sizes.sum() / math.log(2) for side in (base, candidate)],
            by_byte.interval().scaled(1 / math.log(2)),
            drawn(words.size, by_byte.noninferiority_p(byte_margin)),
            unit="bits/byte",
            margin=byte_margin / math.log(2),
            tail=tail,
        ),
    }


def _text_difference(
    pairs: Pairs,
    metric: str,
    values: list[float],
    interval: Interval,
    loss: Drawn,
    *,
    unit: Unit,
    margin: float,
    tail: Tail | None = None,
    over: str = "documents",
) -> Difference:
    for result, value in zip((pairs.base, pairs.candidate), values, strict=True):
        _require_figure(pairs.task, metric, result, value)
    return Difference(
        n=pairs.base.n,
        base=values[0],
        candidate=values[1],
        difference=interval.difference,
        ci95=(interval.low, interval.high),
        unit=unit,
        higher_is_better=False,
        method=CAUTIOUS.format(over),
        margin=margin,
        noninferiority_p=loss.p,
        smallest_detectable_drop=paired.smallest_detectable_change(interval),
        too_few=loss.too_few,
        monte_carlo_error=loss.monte_carlo_error,
        tail=tail,
    )


def _require_own_figure(pairs: Pairs, metric: str) -> None:
    if metric.partition(",")[0] in PRIMARY_METRICS:  # plain means of their items
        for result, values in zip((pairs.base, pairs.candidate), pairs.scores(metric), strict=True):
            _require_figure(pairs.task, metric, result, values.mean())


def _require_figure(task: str, metric: str, result: TaskAccuracy, recomputed: float) -> None:
    """Checks that a figure of the task follows from its own items.

    If it does not, the figure was edited or belongs to other items.
    """
    given = result.metrics[metric].value if metric in result.metrics else recomputed
    if not math.isclose(
        given, recomputed, rel_tol=AGGREGATE_TOLERANCE, abs_tol=AGGREGATE_TOLERANCE
    ):
        raise FlowError(
            f"Task {task}: {metric} is given as {given:.6g}, but its items give {recomputed:.6g}.",
            REMEASURE,
        )
