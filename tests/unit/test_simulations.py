"""What the intervals and tests promise, held against simulated pairs of known truth; docs/Statistics.md has the table.

2,000 draws per setting tell a share of 95 % to within half a point (one standard error). The seeds are fixed and no
setting is left out; the bands are those the project promises.

The intervals of all draws of a setting are computed at once (`support.many`), by other code than the library's. For the
first draws of every setting they are held against the library's own.
"""

import itertools
import math

import numpy as np
import pytest
from support import many

from model_serve_flow import statistics
from model_serve_flow.divergence import mean_over_documents

SEED = 20250
DRAWS = 2000
ALPHA = 0.025
MARGIN = 0.02
CHECKED = 20  # draws of a setting for which the library is asked too
FEW = 10  # changed items, expected; below, the coverage jumps with every whole number of them

SETTINGS = list(itertools.product((0.3, 0.6, 0.9), (0.5, 0.7, 0.9), (100, 500, 2000), (0.0, MARGIN)))


def shares(accuracy: float, correlation: float, drop: float) -> tuple[float, float]:
    """Share of items that become right, and wrong, from the base's accuracy and the correlation of the pairs."""
    after = accuracy - drop
    both = accuracy * after + correlation * math.sqrt(accuracy * (1 - accuracy) * after * (1 - after))
    return after - both, accuracy - both


def draw(n: int, gained: float, lost: float, *key: float) -> np.ndarray:
    """DRAWS rows of how many of n items became right and how many became wrong."""
    seed = [SEED, n, *(round(1e6 * (1 + value)) for value in (gained, lost, *key))]
    return np.random.default_rng(seed).multinomial(n, [gained, lost, 1 - gained - lost], DRAWS)[:, :2]


def answers(gained: int, lost: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    base, candidate = np.zeros(n), np.zeros(n)
    candidate[:gained] = 1
    base[gained : gained + lost] = 1
    return base, candidate


def intervals(rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of every row of (gained, lost)."""
    low, high = many.score_intervals(rows[:, 0], rows[:, 1], n)
    for row, *bounds in zip(rows[:CHECKED], low, high, strict=False):
        found = statistics.paired_binary_difference(*answers(*row, n))
        assert bounds == pytest.approx([found.low, found.high], abs=1e-9)
    return low, high


def noninferiority(rows: np.ndarray, n: int, margin: float = MARGIN) -> np.ndarray:
    """The p-value of every row of (gained, lost)."""
    found = many.score_p_values(rows[:, 0], rows[:, 1], n, margin)
    for row, p in zip(rows[:CHECKED], found, strict=False):
        assert p == pytest.approx(statistics.binary_noninferiority_p(*answers(*row, n), margin), abs=1e-9)
    return found


def coverage(accuracy: float, correlation: float, n: int, drop: float) -> float:
    low, high = intervals(draw(n, *shares(accuracy, correlation, drop)), n)
    return float(np.mean((low <= -drop) & (-drop <= high)))


def exact_coverage(accuracy: float, correlation: float, n: int, drop: float) -> float:
    """The same without chance: every outcome that can happen, weighed by its probability."""
    from scipy.stats import binom

    gain, loss = shares(accuracy, correlation, drop)
    most = [int(binom.ppf(1 - 1e-9, n, share)) for share in (gain, loss)]
    gained, lost = np.indices([count + 1 for count in most]).reshape(2, -1)
    low, high = intervals(np.stack([gained, lost], axis=1), n)
    weight = binom.pmf(gained, n, gain) * binom.pmf(lost, n - gained, loss / (1 - gain))
    return float(np.sum(weight[(low <= -drop) & (-drop <= high)]))


def changed(accuracy: float, correlation: float, n: int, drop: float) -> float:
    return n * sum(shares(accuracy, correlation, drop))


@pytest.mark.parametrize("setting", [s for s in SETTINGS if changed(*s) >= FEW])
def test_the_paired_interval_covers_the_truth(setting):
    assert 0.935 <= coverage(*setting) <= 0.965


@pytest.mark.parametrize("setting", [s for s in SETTINGS if changed(*s) < FEW])
def test_with_few_changed_items_the_paired_interval_covers_at_least_as_often(setting):
    assert exact_coverage(*setting) >= 0.935


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s[3] == MARGIN])
def test_a_true_loss_of_the_margin_is_seldom_called_noninferior(setting):
    accuracy, correlation, n, drop = setting
    assert np.mean(noninferiority(draw(n, *shares(accuracy, correlation, drop)), n) <= ALPHA) <= 0.05


TASKS = {"large": (1400, 0.75, 0.8), "middle": (900, 0.5, 0.7), "small": (500, 0.85, 0.6)}  # n, accuracy, correlation


def verdicts(drops: dict[str, float], suite_margin: float = 0.01) -> dict[str, float]:
    """Share of each verdict by the rule of docs/Statistics.md, for true drops per task."""
    counts = {"SHIP": 0, "DO NOT SHIP": 0, "INCONCLUSIVE": 0}
    for index in zip(*(judged(task, drops[task]) for task in TASKS), strict=True):
        found, ps = zip(*index, strict=True)
        suite = statistics.average_noninferiority_p(statistics.mean_of_independent(found), suite_margin)
        good = max(*statistics.holm(ps), suite) <= ALPHA
        bad = min(*statistics.holm([1 - p for p in ps]), 1 - suite) <= ALPHA
        counts["SHIP" if good else "DO NOT SHIP" if bad else "INCONCLUSIVE"] += 1
    return {verdict: count / DRAWS for verdict, count in counts.items()}


def judged(task: str, drop: float) -> list[tuple[statistics.Interval, float]]:
    """The interval and the p-value of every draw of a task."""
    n, accuracy, correlation = TASKS[task]
    rows = draw(n, *shares(accuracy, correlation, drop), 1, drop)
    bounds = zip((rows[:, 0] - rows[:, 1]) / n, *intervals(rows, n), strict=True)
    return list(zip(itertools.starmap(statistics.Interval, bounds), noninferiority(rows, n), strict=True))


@pytest.mark.parametrize(
    "drops",
    [
        {"large": MARGIN, "middle": 0, "small": 0},
        {"large": 0, "middle": 0, "small": MARGIN},
        {"large": MARGIN, "middle": -0.02, "small": -0.02},
        dict.fromkeys(TASKS, MARGIN),
        dict.fromkeys(TASKS, 0.01),  # every task within its margin, their average on the suite's
    ],
)
def test_a_candidate_on_a_margin_seldom_ships(drops):
    assert verdicts(drops)["SHIP"] <= 0.05


def test_a_candidate_on_every_margin_of_a_task_is_seldom_refused_for_it():
    assert verdicts(dict.fromkeys(TASKS, MARGIN), suite_margin=MARGIN)["DO NOT SHIP"] <= 0.05


def test_clear_cases_are_decided():
    assert verdicts(dict.fromkeys(TASKS, -0.04))["SHIP"] >= 0.9
    assert verdicts(dict.fromkeys(TASKS, 0.08))["DO NOT SHIP"] >= 0.99


POWERED = list(itertools.product((100, 360, 1000, 5000, 14000), (0.02, 0.05, 0.1, 0.2, 0.4)))


def power(n: int, discordant: float) -> float:
    """Share of draws in which the drop that is said to be found with 80 % power is found."""
    drop = statistics.smallest_detectable_drop(n, discordant)
    discordant = max(discordant, drop)
    _, high = intervals(draw(n, (discordant - drop) / 2, (discordant + drop) / 2), n)
    return float(np.mean(high < 0))


@pytest.mark.parametrize(("n", "discordant"), POWERED)
def test_the_smallest_detectable_drop_is_found_as_often_as_stated(n, discordant):
    assert 0.77 <= power(n, discordant) <= 0.83


SETTLED = [(360, 12, 18, 0.04), (1400, 60, 75, 0.02), (900, 40, 95, 0.04)]  # n, gained, lost, margin


def settled(n: int, gained: int, lost: int, margin: float) -> float:
    """Share of draws that are decided at the number of items that is said to settle it."""
    measured = statistics.paired_binary_difference(*answers(gained, lost, n))
    items = statistics.items_to_settle(n, measured, margin)
    low, high = intervals(draw(items, gained / n, lost / n), items)
    return float(np.mean((low > -margin) | (high < -margin)))


@pytest.mark.parametrize(("n", "gained", "lost", "margin"), SETTLED)
def test_the_items_said_to_settle_it_do_so_with_the_power_stated(n, gained, lost, margin):
    assert 0.77 <= settled(n, gained, lost, margin) <= 0.86  # a little cautious: score intervals shrink a little faster


def text_coverage(documents: int, draws: int = DRAWS, true: float = 0.02) -> tuple[float, float]:
    """How often the interval of a change in loss holds the truth, and how often it lies below it (a false SHIP).

    Documents of 60 to 400 words; the change per word differs between documents, skewed to the bad side, and is noisier
    in short ones.
    """
    rng = np.random.default_rng([SEED, documents])
    shape = (draws, documents)
    words = rng.integers(60, 400, shape).astype(float)
    base = -words * rng.normal(3.6, 0.4, shape)
    own = 0.012 * (rng.gamma(2, 1, shape) - 2) / math.sqrt(2)
    change = true + own + rng.normal(0, 0.25 / np.sqrt(words))
    low, high = many.ratio_intervals(words * change, words, SEED)
    for row in range(CHECKED):
        candidate = base[row] - words[row] * change[row]
        found = statistics.paired_loss_change(base[row], candidate, words[row], SEED)
        assert [low[row], high[row]] == pytest.approx([found.low, found.high], rel=1e-9)
    return float(np.mean((low <= true) & (true <= high))), float(np.mean(high < true))


@pytest.mark.parametrize("documents", [16, 40])
def test_the_interval_of_a_perplexity_covers_the_truth(documents):
    held, below = text_coverage(documents)
    assert 0.93 <= held <= 0.97
    assert below <= 0.05


def divergence_coverage(documents: int, draws: int = DRAWS, tokens: int = 256) -> float:
    """Per-token divergences, very skewed, whose level differs between documents by a factor of e^0.5."""
    rng = np.random.default_rng([SEED, documents, tokens])
    true = 0.02 * math.exp(0.125)
    levels = 0.02 * rng.lognormal(0, 0.5, (draws, documents, 1))
    values = rng.gamma(0.3, levels / 0.3, (draws, documents, tokens))
    low, high = many.ratio_intervals(values.sum(axis=2), np.full((draws, documents), float(tokens)), SEED)
    for row in range(CHECKED):
        found = mean_over_documents(list(values[row]), SEED)
        assert [low[row], high[row]] == pytest.approx([found.low, found.high], rel=1e-9)
    return float(np.mean((low <= true) & (true <= high)))


def test_the_interval_of_a_divergence_covers_the_truth_with_sixteen_documents():
    assert divergence_coverage(16, draws=1000) >= 0.90
