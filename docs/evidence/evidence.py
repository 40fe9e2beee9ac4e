"""Runs the simulations behind docs/Statistics.md in full and writes the pages of this folder:
`make evidence`.

The simulations are those of the tests (tests/unit), with more draws. Every rate has its Monte-Carlo
error, sqrt(p (1 - p) / draws). Exact rates are sums over all outcomes and have none.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import scipy
import statsmodels
from numpy.typing import NDArray
from statsmodels.stats import multitest, proportion, weightstats
from statsmodels.stats.contingency_tables import mcnemar

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "unit"), str(TESTS / "unit" / "compare")]

import test_capacity_interval as capacity  # noqa: E402
import test_looks as looks  # noqa: E402
import test_several as several  # noqa: E402
import test_simulations as simulations  # noqa: E402
import test_speed_in_blocks as speed  # noqa: E402

from model_serve_flow.compare.stats import bootstrap, paired  # noqa: E402

ALPHA, COVERED = 0.025, 0.93
COMMAND = "make evidence"


@dataclass(frozen=True)
class Row:
    """One simulated rate and what was promised of it."""

    page: str
    setting: str
    rate: float
    draws: int | None  # none: exact
    most: float | None = None  # of an error
    least: float | None = None  # of a coverage or a power
    before: str = ""  # what the rate was by an earlier method, or without the correction

    @property
    def error(self) -> float:
        """The Monte-Carlo standard error of the rate."""
        return 0.0 if self.draws is None else math.sqrt(self.rate * (1 - self.rate) / self.draws)

    @property
    def holds(self) -> bool:
        """Whether the promise is kept, within two Monte-Carlo errors of the promised rate."""
        promised = self.most if self.most is not None else self.least
        slack = 0.0 if self.draws is None else 2 * math.sqrt(promised * (1 - promised) / self.draws)
        return bool(
            self.rate <= self.most + slack
            if self.most is not None
            else self.rate >= self.least - slack
        )


PAGES = {
    "paired-answers": "Paired answers: intervals, false SHIP, power",
    "rare-losses": "Rare losses, few documents, texts and clusters",
    "weak-tasks": "Tasks that cannot show a loss, and retention",
    "candidates": "Planned looks and several candidates",
    "speed": "Speed-up, capacity and cost",
}


def paired_answers(draws: int) -> Iterator[Row]:
    """The score interval and test, and the verdict over three tasks."""
    simulations.DRAWS = draws
    page = "paired-answers"
    for setting in simulations.SETTINGS:
        few = simulations.changed(*setting) < simulations.FEW
        rate = simulations.exact_coverage(*setting) if few else simulations.coverage(*setting)
        text = "95 % interval; accuracy {}, correlation {}, n = {}, drop {}".format(*setting)
        yield Row(page, text, rate, None if few else draws, least=COVERED)
    for setting in (s for s in simulations.SETTINGS if s[3]):
        text = "false non-inferiority on the margin; accuracy {}, correlation {}, n = {}".format(
            *setting
        )
        yield Row(page, text, simulations.noninferior_rate(*setting), draws, most=0.05)
    margin, tasks = simulations.MARGIN, simulations.TASKS
    for name, drops in {
        "one task of three on its margin, two without loss": {
            "large": margin,
            "middle": 0,
            "small": 0,
        },
        "one of three on its margin, two truly better": {
            "large": margin,
            "middle": -0.02,
            "small": -0.02,
        },
        "all three tasks on their margins": dict.fromkeys(tasks, margin),
        "three tasks, their average on its margin": dict.fromkeys(tasks, 0.01),
    }.items():
        yield Row(
            page, f"false SHIP; {name}", simulations.verdicts(drops)["SHIP"], draws, most=ALPHA
        )
    refused = simulations.verdicts(dict.fromkeys(tasks, margin), suite_margin=margin)["DO NOT SHIP"]
    yield Row(
        page,
        "false DO NOT SHIP; three tasks and their average on the margins",
        refused,
        draws,
        most=2 * ALPHA,
    )
    for n, discordant in simulations.POWERED:
        text = f"power of the smallest detectable drop (80 %); n = {n}, {discordant:.0%} changed"
        yield Row(page, text, simulations.power(n, discordant), draws, least=0.77)
    for setting in simulations.SETTLED:
        text = (
            "decided at the items that are said to settle it (80 %); n = {}, gained {}, lost {}, "
            "margin {}"
        )
        yield Row(page, text.format(*setting), simulations.settled(*setting), draws, least=0.77)


def rare_losses(draws: int) -> Iterator[Row]:
    """What a bootstrap alone gets wrong."""
    simulations.DRAWS = draws
    page = "rare-losses"
    for n in (20, 50, 100, 200, 400):
        before = {20: "66 %", 100: "14 %"}.get(n, "")
        text = f"false SHIP; 2 % of {n} items lose everything, mean on the margin"
        yield Row(page, text, simulations.rare_loss_rate(n, 0.002), None, most=ALPHA, before=before)
    for documents in (16, 40, 100):
        held, below = simulations.text_coverage(documents, draws)
        yield Row(
            page,
            f"95 % interval of a perplexity, {documents} documents",
            held,
            draws,
            least=COVERED,
        )
        yield Row(
            page,
            f"false SHIP; perplexity on its margin, {documents} documents",
            below,
            draws,
            most=ALPHA,
        )
    for documents, share in ((16, 0.01), (100, 0.01), (400, 0.002)):
        text = (
            f"stated share of collapsed documents (95 %); {documents} documents, {share:.1%} "
            "collapse"
        )
        yield Row(page, text, simulations.tail_coverage(documents, share), None, least=0.95)
    for documents in (16, 64):
        rate = simulations.divergence_coverage(documents, draws // 10)
        yield Row(
            page,
            f"95 % interval of a mean divergence, {documents} documents",
            rate,
            draws // 10,
            least=0.9,
        )
    equal, mmlu = np.full(57, 246), simulations.MMLU
    for sizes, icc, name, most in (
        (equal, 0.01, "57 clusters of one size", ALPHA),
        (equal, 0.05, "57 clusters of one size", ALPHA),
        (np.full(14, 40), 0.05, "14 clusters of one size", ALPHA),
        (mmlu, 0.01, "57 clusters of MMLU's sizes", ALPHA),
        (mmlu, 0.05, "57 clusters of MMLU's sizes", ALPHA),
    ):  # fmt: skip
        alone, together = simulations.clustered_rates(sizes, icc)
        text = f"false SHIP; {name}, ICC {icc}"
        yield Row(page, text, together, draws, most=most, before=f"{alone:.0%} item by item")


def weak_tasks(draws: int) -> Iterator[Row]:
    """Assay sensitivity and retention."""
    simulations.DRAWS = draws
    text = "false SHIP; 0 % where the base scores 1 % on 1,319 items, beside four healthy tasks"
    yield Row("weak-tasks", text, simulations.collapse_rate(), None, most=ALPHA, before="83 %")
    text, few = "false SHIP; the base has 26 % of four choices, the candidate guesses", 20
    yield Row("weak-tasks", text, simulations.guess_rate(few), few, most=ALPHA, before="17 %")
    for setting in simulations.RETAINED:
        text = (
            "false SHIP; keeps just too little: n = {}, score {}, {} changed, {} to keep, guessing "
            "{}"
        ).format(*setting)
        yield Row("weak-tasks", text, simulations.retention_rate(*setting), draws // 2, most=ALPHA)


def candidates(draws: int) -> Iterator[Row]:
    """Planned looks, Holm over all questions of all candidates, and ranks."""
    for number in (2, 4, 8):
        plain, planned = looks.false_ship(number, draws)
        text = f"false SHIP at any of {number} planned looks, the loss is the margin"
        before = f"{plain:.1%} by the plain test at each look"
        yield Row("candidates", text, planned, draws, most=ALPHA, before=before)
    for change in (-looks.MARGIN, -0.01, -0.005, 0.0):
        plain, repeated = looks.stopped_coverage(change, draws=draws)
        text = f"95 % interval at the look of 4 that stopped; true change {100 * change:g} points"
        before = f"{plain:.1%} by the plain interval"
        yield Row("candidates", text, repeated, draws, least=0.95, before=before)
    for number in (2, 5, 20):
        alone, corrected = several.best_ships(number, draws // 2)
        text = f"false SHIP of any; {number} candidates, all on the margin"
        yield Row(
            "candidates", text, corrected, draws // 2, most=ALPHA, before=f"{alone:.0%} uncorrected"
        )
    for clustered in (False, True):
        text = (
            f"any two of five equal models told apart{', items in clusters' if clustered else ''}"
        )
        yield Row(
            "candidates", text, several.told_apart(clustered, draws // 20), draws // 20, most=0.05
        )


def speed_and_capacity(draws: int) -> Iterator[Row]:
    """Intervals over blocks of restarted servers."""
    speed.DRAWS = draws
    before = f"{speed.one_start_coverage(draws // 10):.0%} with repeats on one server"
    for blocks, repeats in ((3, 1), (3, 3), (5, 1)):
        for between in (0.0, 0.5, 1.0, 2.0, 5.0):
            text = (
                f"95 % interval of a speed-up; {blocks} blocks of {repeats} repeats, starts differ "
                f"{between:g} times "
            )
            text += "as much as repeats"
            rate = speed.coverage(between, blocks, repeats)
            yield Row(
                "speed", text, rate, draws, least=COVERED, before=before if between == 2 else ""
            )
    rate = speed.coverage(1.0, 4, drift=0.1)
    yield Row("speed", "the same, 4 blocks, the machine slows by 10 %", rate, draws, least=COVERED)
    few = draws // 2
    one = (
        f"{capacity.one_search_coverage(capacity.NOISES[-1], few):.0%} between the loads of one "
        "search"
    )
    for noise in capacity.NOISES:
        for requests, tolerance in ((30, 0.1), (120, 0.1), (30, 1.0)):
            text = (
                f"95 % interval of a capacity; 3 searches, {requests} requests a load, tolerance "
                f"{tolerance}, capacity "
            )
            text += (
                f"differs by {noise.starts:.0%} from start to start and {noise.loads:.0%} from "
                "load to load"
            )
            before = one if (noise, requests) == (capacity.NOISES[-1], 120) else ""
            rate = capacity.coverage(noise, 3, requests, tolerance, few)
            yield Row("speed", text, rate, few, least=COVERED, before=before)


STUDIES: tuple[Callable[[int], Iterator[Row]], ...] = (
    paired_answers, rare_losses, weak_tasks, candidates, speed_and_capacity
)  # fmt: skip


def agreements() -> dict[str, float]:
    """Largest difference between the library and an independent implementation."""
    rng = np.random.default_rng(1)
    return {
        "Holm's adjusted p-values, statsmodels": max(map(_holm_difference, rng.random((50, 7)))),
        "paired t interval of blocks, statsmodels": max(
            map(_paired_difference, np.exp(0.1 * rng.standard_normal((50, 2, 3))))
        ),
        "Wilson's interval, statsmodels": max(_wilson_difference(*case) for case in SHARES),
        "Clopper and Pearson's bound, statsmodels": max(
            _exact_difference(*case) for case in SHARES
        ),
        "McNemar's exact p, statsmodels": max(
            _mcnemar_difference(*case) for case in ((3, 9), (0, 4), (20, 21))
        ),
    }


SHARES = ((0, 10), (3, 40), (57, 60), (200, 1000))  # count, n


def _holm_difference(ps: NDArray) -> float:
    return float(np.abs(paired.holm(ps) - multitest.multipletests(ps, method="holm")[1]).max())


def _paired_difference(sides: NDArray) -> float:
    theirs = weightstats.DescrStatsW(np.log(sides[1] / sides[0])).tconfint_mean()
    return float(np.abs(np.log(paired.paired_ratio(*sides)[1]) - theirs).max())


def _wilson_difference(count: int, n: int) -> float:
    ours = paired.wilson_interval(count, n)
    theirs = proportion.proportion_confint(count, n, method="wilson")
    return float(np.abs(np.subtract(theirs, (ours.low, ours.high))).max())


def _exact_difference(count: int, n: int) -> float:
    upper = proportion.proportion_confint(count, n, alpha=0.1, method="beta")[1]
    return float(abs(paired.share_at_most(count, n) - upper))


def _mcnemar_difference(gained: int, lost: int) -> float:
    ours = paired.mcnemar_p(*simulations.answers(gained, lost, 100))
    return float(abs(ours - mcnemar([[0, lost], [gained, 0]], exact=True).pvalue))


def main() -> None:
    """Runs every study and writes a page for each, an overview, and all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--draws",
        type=int,
        default=20_000,
        help="of the cheap settings; costly ones take a part of it",
    )
    parser.add_argument(
        "--page", choices=PAGES, help="simulate one page; the others keep what they have"
    )
    chosen = parser.parse_args()
    bootstrap.RESAMPLES = 4999  # over many draws the error of fewer resamples averages out
    rows: list[Row] = []
    for page, study in zip(PAGES, STUDIES, strict=True):
        rows += simulated(study, chosen.draws) if chosen.page in (None, page) else found(page)
    write(rows, chosen.draws)
    if broken := [row.setting for row in rows if not row.holds]:
        sys.exit(f"{len(broken)} of {len(rows)} promises do not hold: {'; '.join(broken)}")


def simulated(study: Callable[[int], Iterator[Row]], draws: int) -> Iterator[Row]:
    """Runs a study and prints each rate."""
    for row in study(draws):
        kept = "" if row.holds else "NOT AS PROMISED "
        print(f"{row.rate:7.2%}  {kept}{row.setting}", flush=True)
        yield row


def found(page: str) -> list[Row]:
    """Reads the rows of a page that an earlier run wrote."""
    rows = json.loads((HERE / "evidence.json").read_text(encoding="utf-8"))["rows"]
    names = [field.name for field in fields(Row)]
    return [Row(**{name: row[name] for name in names}) for row in rows if row["page"] == page]


def write(rows: list[Row], draws: int) -> None:
    """Writes the pages of this folder."""
    versions = {
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "statsmodels": statsmodels.__version__,
    }
    agreed = agreements()
    document = {"command": COMMAND, "draws": draws, "versions": versions, "agreement": agreed}
    document["rows"] = [{**asdict(row), "error": row.error, "holds": row.holds} for row in rows]
    (HERE / "evidence.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for page, title in PAGES.items():
        mine = [row for row in rows if row.page == page]
        text = "\n".join([f"# {title}", "", GENERATED, "", *table(mine), ""])
        (HERE / f"{page}.md").write_text(text, encoding="utf-8")
    (HERE / "README.md").write_text(overview(rows, agreed, draws), encoding="utf-8")


GENERATED = (
    f"Generated by `{COMMAND}`; [what it means](../Statistics.md). A rate with draws has the error "
    "of the simulation."
)


PUBLISHED = """The tests repeat published examples
([test_paired.py](../../tests/unit/compare/stats/test_paired.py),
[test_divergence.py](../../tests/unit/compare/stats/test_divergence.py)):
Tango's limits of two studies in
Fagerland, Lydersen and Laake; McNemar's exact p of Armitage and Berry's culture media and of the
same; Agresti's approval ratings, where the score test without a margin is McNemar's; Newcombe's
Wilson interval; Cover and Thomas' divergence. SciPy: BCa and entropy. The restricted likelihood of
Tango's test is also maximised by brute force."""


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| setting | promised | found | draws | before |"
    yield "|---|--:|--:|--:|---|"
    for row in rows:
        promised = (
            f"at most {row.most:.1%}" if row.most is not None else f"at least {row.least:.0%}"
        )
        error = "" if row.draws is None else f" ± {row.error:.2%}"
        draws = "exact" if row.draws is None else f"{row.draws:,}"
        yield f"| {row.setting} | {promised} | {row.rate:.2%}{error} | {draws} | {row.before} |"


def overview(rows: list[Row], agreed: dict[str, float], draws: int) -> str:
    """The page that links the others."""
    lines = ["# Evidence: every promised rate, simulated", "", GENERATED, ""]
    lines += [(f"{sum(row.holds for row in rows)} of {len(rows)} promises hold, within two errors "
               f"of the simulation ({draws:,} draws where they are cheap). "
               "The tests run a share of the same "
               "functions."), "", "| page | settings | worst |", "|---|--:|---|"]  # fmt: skip
    for page, title in PAGES.items():
        mine = [row for row in rows if row.page == page]
        lines.append(f"| [{title}]({page}.md) | {len(mine)} | {worst(mine)} |")
    lines += [
        "",
        *(
            f"Not as promised: {row.setting}, {row.rate:.2%} ± {row.error:.2%}."
            for row in rows
            if not row.holds
        ),
    ]
    lines += ["",
              ("The rates 66, 14, 83 and 17 % in the columns 'before' are those of the review that "
               "found the flaw; the others are simulated here.")]  # fmt: skip
    lines += [
        "",
        "Independent implementations: the largest difference over random data.",
        "",
        "| what | difference |",
    ]
    lines += [
        "|---|--:|",
        *(f"| {name} | {value:.0e} |" for name, value in agreed.items()),
        "",
        PUBLISHED,
        "",
    ]
    return "\n".join([*lines, "All figures are in [evidence.json](evidence.json).", ""])


def worst(rows: list[Row]) -> str:
    """The highest error and the lowest coverage of a page."""
    errors = [row.rate for row in rows if row.most is not None and row.most <= ALPHA]
    covers = [row.rate for row in rows if row.least == COVERED]
    parts = [f"false decision {max(errors):.1%}"] if errors else []
    return ", ".join([*parts, f"coverage {min(covers):.1%}"] if covers else parts)


if __name__ == "__main__":
    main()
