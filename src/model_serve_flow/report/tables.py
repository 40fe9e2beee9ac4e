"""Builds the report's tables as plain data.

The page, its Markdown and the model card use the same tables, so they say the same.

A candidate that must not ship has its speed-up, capacity and cost struck through: they are no gain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model_serve_flow.compare.reading import (
    all_differences,
    clusters,
    must_not_ship,
    p_value,
    primary_metric,
    within_margin,
)
from model_serve_flow.compare.stats import paired
from model_serve_flow.flow.results.compared import (
    BaseComparison,
    CandidateComparison,
    Comparison,
    Difference,
    Divergence,
    FlippedItem,
    Flips,
    NoiseFloor,
    Slice,
    SoftScore,
    SpeedPoint,
)
from model_serve_flow.flow.results.measured import BASE, Capacity
from model_serve_flow.report.formatting import (
    NOT_MEASURED,
    NOT_RECORDED,
    byte_text,
    capacity_interval,
    capacity_text,
    change,
    count,
    detectable,
    dollars,
    flips,
    gross_loss,
    interval,
    margin,
    memory,
    nats,
    number,
    percent,
    ratio_interval,
    recovery,
    retention,
    shortened,
    signed,
    times,
    value,
)

BOUND = {"decode": "decoding", "prefill": "reading the prompt"}
EMBEDDED_FLIPS = 200
ALPHA = 0.05


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: first line.
        sub: second line.
        key: number by which the column is sorted.
        struck: whether the text is struck through.
        verdict: whether the text is a verdict.
    """

    text: str
    sub: str = ""
    key: float | None = None
    struck: bool = False
    verdict: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    A column whose name ends in '#' holds numbers; a column whose name ends in '¶' holds longer
    text.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = True

    @property
    def headings(self) -> tuple[tuple[str, str], ...]:
        """(name, kind) of every column.

        The kind is 'n' for numbers, 'long' for text that wraps, '' for the rest.
        """
        kinds = {"#": "n", "¶": "long"}
        return tuple((name.rstrip("#¶"), kinds.get(name[-1:], "")) for name in self.columns)


# --- The summary: one row per question, one column per model ---


def summary(comparison: Comparison) -> Table:
    """Builds the one table before the charts: what each candidate gains and costs."""
    base, candidates = comparison.base, comparison.candidates
    questions: list[tuple[str, Cell, Callable[[CandidateComparison], Cell]]] = [
        ("Verdict", Cell("–"), lambda c: Cell(c.verdict, verdict=True)),
        ("Average score, difference and 95 % interval", Cell("–"), average_cell),
        ("Answers that flipped", _noise_cell(comparison), flip_cell),
        ("Speed-up in output tokens/s, 95 % intervals by concurrent requests", Cell("–"),
         speed_cell),
        ("Faster than the base?", Cell("–"), speed_verdict_cell),
        ("Capacity: concurrent requests within the latency objectives, 95 % interval",
         _capacity(base.capacity),
         lambda c: capacity_cell(base, c)),
        ("Cost per million output tokens at capacity", cost_cell(base),
         lambda c: cost_cell(c, struck=must_not_ship(c))),
        ("Size on disk", Cell(byte_text(base.size_bytes)),
         lambda c: Cell(byte_text(c.size_bytes), f"in the engine {percent(c.size_ratio)} of base")),
        ("Peak memory while serving", Cell(memory(base.memory.peak_bytes)),
         lambda c: Cell(memory(c.memory.peak_bytes))),
        ("KV cache, tokens", Cell(count(base.memory.kv_cache_tokens)),
         lambda c: Cell(count(c.memory.kv_cache_tokens))),
    ]  # fmt: skip
    rows = tuple(
        (Cell(name), ours, *(answer(c) for c in candidates)) for name, ours, answer in questions
    )
    return Table(
        "What each candidate gains and costs",
        ("", BASE, *(c.name for c in candidates)),
        rows,
        sortable=False,
    )


def average_cell(candidate: CandidateComparison) -> Cell:
    """Shows the average score's difference with its interval."""
    if candidate.suite is None:
        return Cell("no task can decide" if candidate.accuracy else NOT_MEASURED)
    return Cell(change(candidate.suite), interval(candidate.suite))


def flip_cell(candidate: CandidateComparison) -> Cell:
    """Shows the share of the answers that became right or wrong."""
    counted = flip_counts(candidate)
    if counted is None:
        return Cell(NOT_MEASURED)
    wrong = sum(f.right_to_wrong for f, _ in counted.values())
    right = sum(f.wrong_to_right for f, _ in counted.values())
    return Cell(percent_flips(counted), f"{wrong} became wrong, {right} right")


def speed_cell(candidate: CandidateComparison) -> Cell:
    """Shows the lowest and the highest speed-up, with interval and concurrency of each."""
    ordered = sorted(candidate.performance, key=lambda point: point.speedup)
    unmeasured = [f"at {load.concurrency}: {NOT_MEASURED}" for load in candidate.unmeasured]
    if not ordered:
        return Cell(NOT_MEASURED, "; ".join(unmeasured))
    ends = ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]
    intervals = [f"at {point.concurrency}: {ratio_interval(point)}" for point in ends]
    return Cell(
        speedup_range(candidate),
        "; ".join([*intervals, *unmeasured]),
        struck=must_not_ship(candidate),
    )


def speed_verdict_cell(candidate: CandidateComparison) -> Cell:
    """Shows FASTER, NOT FASTER or UNSURE, with the mean speed-up and its interval."""
    found = candidate.speed
    if found is None:
        return Cell(NOT_MEASURED)
    between = "one repeat" if found.ci95 is None else "{:.2f} to {:.2f}".format(*found.ci95)
    mean = f"{times(found.speedup)} on average, {between}; margin {times(found.margin)}"
    return Cell(found.reading, mean, key=found.speedup, struck=must_not_ship(candidate))


def speedup_range(candidate: CandidateComparison) -> str:
    """Writes the lowest to highest speed-up over the load points, e.g. '1.33× to 1.37×'."""
    ratios = [point.speedup for point in candidate.performance]
    if not ratios:
        return NOT_MEASURED
    low, high = times(min(ratios)), times(max(ratios))
    return low if low == high else f"{low} to {high}"


def capacity_cell(base: BaseComparison, candidate: CandidateComparison) -> Cell:
    """Shows the capacity as '10 → 14', with the candidate's interval."""
    if candidate.capacity is None:
        return Cell(NOT_MEASURED)
    before = "" if base.capacity is None else f"{capacity_text(base.capacity)} → "
    cell = _capacity(candidate.capacity)
    return Cell(before + cell.text, cell.sub, struck=must_not_ship(candidate))


def cost_cell(model: BaseComparison | CandidateComparison, *, struck: bool = False) -> Cell:
    """Shows the cost per million output tokens with its 95 % interval, or why there is none."""
    cost, capacity = model.cost_per_million_output_tokens, model.capacity
    if cost is not None:
        between = (
            "" if model.cost_ci95 is None else "{} to {}".format(*map(dollars, model.cost_ci95))
        )
        return Cell(dollars(cost), between, cost, struck)
    if capacity is None or not capacity.measured:
        return Cell(NOT_MEASURED)
    return Cell("no load met the objectives" if capacity.streams == 0 else "no price given")


def _capacity(capacity: Capacity | None) -> Cell:
    return (
        Cell(NOT_MEASURED)
        if capacity is None
        else Cell(capacity_text(capacity), capacity_interval(capacity))
    )


# --- Accuracy ---


def accuracy_table(candidates: Iterable[CandidateComparison]) -> Table:
    """Builds a table of every task and metric: both values, their difference, and its tests."""
    columns = (
        "Candidate", "Task", "n#", "Base → candidate#", "Difference, 95 % interval#", "Reading¶",
        "Margin#",
        "McNemar p#", "Became wrong / right#", "Smallest detectable drop#", "Recovery#",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(candidate.name), Cell(task, metric), Cell(count(d.n), clusters(d).strip(), d.n),
            Cell(f"{value(d.base, d)} → {value(d.candidate, d)}", key=d.candidate),
            Cell(change(d), interval(d), key=d.difference), Cell(reading(d)),
            Cell(margin(d), retention(d), d.margin),
            Cell(p_value(d.mcnemar_p), key=d.mcnemar_p),
            Cell(flips(d.flips), gross_loss(d), key=_total(d.flips)),
            Cell(detectable(d), key=d.smallest_detectable_drop),
            Cell(recovery(d), "near chance" if d.near_chance else "", d.recovery_percent),
        )
        for candidate in candidates
        for task, metric, d in all_differences(candidate)
    )  # fmt: skip
    return Table("Accuracy per task: candidate minus base, paired item by item", columns, rows)


def reading(difference: Difference) -> str:
    """Says how a difference compares with the accepted drop.

    If the metric counts in the verdict, this is the verdict's finding; otherwise the interval
    decides.
    """
    found = _reading_of(difference)
    return f"advisory, decides nothing: {found}" if difference.tier == "advisory" else found


def _reading_of(difference: Difference) -> str:
    if difference.near_chance:
        return "near chance: decides nothing"
    if difference.too_weak:
        return "the base is too weak here: decides nothing"
    if difference.too_few is not None:
        return f"not decided: too few, at least {difference.too_few} are needed"
    if difference.adjusted_p is not None:
        within, beyond = (p <= paired.ALPHA for p in difference.adjusted_p)
        return _reading(difference, within, beyond)
    low, high = difference.ci95
    beyond = high < -difference.limit if difference.higher_is_better else low > difference.limit
    return _reading(difference, within_margin(difference), beyond)


def _reading(difference: Difference, within: bool, beyond: bool) -> str:
    text = "within margin" if within else "beyond margin" if beyond else "undecided"
    if text == "undecided" and difference.items_to_settle:
        text = f"undecided: about {difference.items_to_settle:,} items would settle it"
    return text


def soft_table(candidates: Iterable[CandidateComparison]) -> Table:
    """Builds a table of the soft score, beside the score of right or wrong."""
    columns = (
        "Candidate", "Task", "n#", "Base → candidate, %#", "Difference, points, 95 % interval#",
        "Reading¶",
        "Width of the interval over that of right or wrong#",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(candidate.name), Cell(task), Cell(count(s.n), clusters(s).strip(), s.n),
            Cell(f"{number(s.base, 2)} → {number(s.candidate, 2)}", key=s.candidate),
            Cell(signed(s.difference, 2), f"{signed(s.ci95[0], 2)} to {signed(s.ci95[1], 2)}",
                 s.difference),
            Cell(soft_reading(s)), _width_cell(s, candidate.accuracy.get(task)),
        )
        for candidate in candidates
        for task, s in candidate.soft.items()
    )  # fmt: skip
    return Table("Secondary, decides nothing: the probability of the right choice", columns, rows)


def soft_reading(score: SoftScore) -> str:
    """Says whether the interval of the soft score shows a difference."""
    if score.ci95[1] < 0:
        return "less probable"
    return "more probable" if score.ci95[0] > 0 else "no difference shown"


def _width_cell(score: SoftScore, metrics: dict[str, Difference] | None) -> Cell:
    low, high = metrics[primary_metric(metrics)].ci95 if metrics else (0.0, 0.0)
    if high == low:
        return Cell("–")
    ratio = (score.ci95[1] - score.ci95[0]) / (high - low)
    return Cell(times(ratio), key=ratio)


# --- Flips, distribution shift, noise ---

Counted = dict[str, tuple[Flips, int]]  # task -> flips, items


def flip_counts(candidate: CandidateComparison) -> Counted | None:
    """Returns task -> (flips, items) by the primary metric, for the tasks scored right or wrong.

    Returns:
        None if there is no such task.
    """
    main = {task: metrics[primary_metric(metrics)] for task, metrics in candidate.accuracy.items()}
    return {task: (d.flips, d.n) for task, d in main.items() if d.flips is not None} or None


def percent_flips(counted: Counted | None) -> str:
    """Writes the share of flips in both directions over the items of all tasks."""
    return percent(_flip_share(counted), 1) if counted else NOT_MEASURED


def _flip_share(counted: Counted) -> float:
    return sum(flips.total for flips, _ in counted.values()) / sum(n for _, n in counted.values())


def _total(flips: Flips | None) -> int | None:
    return None if flips is None else flips.total


def _noise(comparison: Comparison) -> NoiseFloor | None:
    """Returns the noise floor; it belongs to the base, so it is the same for every candidate."""
    return next((c.noise_floor for c in comparison.candidates if c.noise_floor is not None), None)


def _noise_cell(comparison: Comparison) -> Cell:
    """Shows the share of answers that the engine flips by itself.

    The share is estimated from the items that were asked twice.
    """
    floor = _noise(comparison)
    if floor is None or floor.rate is None:
        return Cell(NOT_MEASURED)
    low, high = floor.rate.ci95
    between = f"{percent(low, 1)} to {percent(high, 1)}"
    return Cell(
        percent(floor.rate.value, 1),
        f"noise floor: {between}, {sum(floor.items.values()):,} asked twice",
        key=floor.rate.value,
    )


def _flips_cell(counted: Counted | None) -> Cell:
    if not counted:
        return Cell(NOT_MEASURED)
    return Cell(percent_flips(counted), key=_flip_share(counted))


def shift_table(comparison: Comparison) -> Table:
    """Builds a table of flips, KL divergence and top-1 agreement, beside the noise floor."""
    counts = {c.name: flip_counts(c) for c in comparison.candidates}
    tasks = list(dict.fromkeys(task for counted in counts.values() if counted for task in counted))
    floor = _noise(comparison)
    twice = {task: (one, floor.items[task]) for task, one in floor.flips.items()} if floor else None
    models: list[tuple[str, Counted | None, Cell, CandidateComparison | NoiseFloor | None]]
    models = [("base, asked again", twice, _noise_cell(comparison), floor)]
    models += [
        (c.name, counts[c.name], _flips_cell(counts[c.name]), c) for c in comparison.candidates
    ]
    columns = (
        "Measured against the base", "Answers flipped#",
        *(f"{task}, became wrong / right#" for task in tasks),
        "KL divergence, mean, nats/token#", "KL, 99th percentile#", "Same likeliest token#",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(name), share, *(_task_flips(counted, task) for task in tasks),
            *_divergence_cells(None if found is None else found.kl), _agreement_cell(found),
        )
        for name, counted, share, found in models
    )  # fmt: skip
    return Table("Flips and distribution shift beside the noise floor", columns, rows)


def _task_flips(counted: Counted | None, task: str) -> Cell:
    found = (counted or {}).get(task)
    return (
        Cell("–")
        if found is None
        else Cell(flips(found[0]), f"of {found[1]:,}", key=_total(found[0]))
    )


def _divergence_cells(kl: Divergence | None) -> tuple[Cell, Cell]:
    if kl is None:
        return Cell(NOT_MEASURED), Cell("–")
    between, tail = (_nats_between(bounds) for bounds in (kl.ci95, kl.p99_ci95))
    return Cell(nats(kl.mean), between, key=kl.mean), Cell(nats(kl.p99), tail, key=kl.p99)


def _nats_between(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{nats(bounds[0])} to {nats(bounds[1])}"


def _agreement_cell(found: CandidateComparison | NoiseFloor | None) -> Cell:
    """Shows the share of tokens with the same likeliest token, with its interval."""
    if found is None or found.top1_agreement is None:
        return Cell(NOT_MEASURED)
    bounds = found.top1_ci95
    between = "" if bounds is None else f"{percent(bounds[0], 1)} to {percent(bounds[1], 1)}"
    return Cell(percent(found.top1_agreement, 1), between, key=found.top1_agreement)


def flipped_table(items: Sequence[FlippedItem], limit: int = EMBEDDED_FLIPS) -> Table:
    """Builds a table of the items whose answer became right or wrong.

    If there are more than `limit` items, an even choice over the tasks is shown.
    """
    columns = ("Task", "Became", "Prompt¶", "Expected¶", "Base's answer¶", "Candidate's answer¶")
    rows = tuple(
        (
            Cell(item.task, item.id), Cell(item.became), Cell(shortened(item.prompt)),
            Cell(shortened(item.expected)),
            Cell(shortened(item.base_answer)), Cell(shortened(item.candidate_answer)),
        )
        for item in evenly(items, limit)
    )  # fmt: skip
    return Table(f"{len(rows)} of {len(items):,} flipped items", columns, rows)


def evenly(items: Sequence[FlippedItem], limit: int) -> list[FlippedItem]:
    """Chooses at most `limit` items in their order, taken in turn from every task and direction."""
    seen: dict[tuple[str, str], int] = defaultdict(int)
    turns = []
    for place, item in enumerate(items):
        turns.append((seen[item.task, item.became], place))
        seen[item.task, item.became] += 1
    return [items[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def slice_table(candidates: Iterable[CandidateComparison]) -> Table:
    """Builds a table of slices, with p-values corrected for the number of slices."""
    columns = (
        "Candidate", "Task", "Part¶", "n#", "Base → candidate#",
        "Difference, points, 95 % interval#", "Reading¶",
        "McNemar p#", "corrected p#",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(candidate.name), Cell(s.task), Cell(s.value, s.group), Cell(count(s.n), key=s.n),
            Cell(f"{number(s.base)} → {number(s.candidate)}", key=s.candidate),
            Cell(signed(s.difference), f"{signed(s.ci95[0])} to {signed(s.ci95[1])}",
                 key=s.difference),
            Cell(slice_reading(s)), Cell(p_value(s.mcnemar_p), key=s.mcnemar_p),
            Cell("–" if s.too_small else p_value(s.adjusted_p),
                 key=None if s.too_small else s.adjusted_p),
        )
        for candidate in candidates
        for s in candidate.slices
    )  # fmt: skip
    return Table("Parts of tasks", columns, rows)


def slice_reading(part: Slice) -> str:
    """Says whether the slice differs, after correction for the number of slices."""
    if part.too_small:
        return "too small to tell"
    if part.adjusted_p >= ALPHA:
        return "no significant difference"
    return "significantly worse" if part.difference < 0 else "significantly better"


# --- Speed ---


def speed_table(candidates: Iterable[CandidateComparison]) -> Table:
    """Builds a table of base and candidate under the same load."""
    columns = (
        "Candidate", "Requests at once#", "Repeats#", "Output tokens/s#",
        "Speed-up, 95 % interval#",
        "TTFT p95, ms#", "ITL p95, ms#", "Request latency, median, s#", "Client's CPU share#",
        "Client¶",
        "Other programs' CPU share#",
    )  # fmt: skip
    rows = tuple(
        (Cell(c.name), *cells) for c in candidates for cells in _load_rows(c, len(columns) - 1)
    )
    return Table("Speed per load point, base → candidate, means over the repeats", columns, rows)


def _load_rows(candidate: CandidateComparison, width: int) -> list[tuple[Cell, ...]]:
    """Builds a row per load point, the lowest concurrency first.

    The row of a load point that is not measured says why.
    """
    struck = must_not_ship(candidate)
    rows = {point.concurrency: _speed_cells(point, struck) for point in candidate.performance}
    for load in candidate.unmeasured:
        known = (
            Cell(str(load.concurrency), key=load.concurrency),
            Cell("–"),
            Cell(NOT_MEASURED, load.reason),
        )
        rows[load.concurrency] = (*known, *(Cell("–") for _ in range(width - len(known))))
    return [rows[concurrency] for concurrency in sorted(rows)]


def _speed_cells(point: SpeedPoint, struck: bool) -> tuple[Cell, ...]:
    throughput = {
        BASE: point.base_output_tokens_per_s,
        "candidate": point.candidate_output_tokens_per_s,
    }
    return (
        Cell(str(point.concurrency), key=point.concurrency), _repeats(point),
        _pair(throughput, number),
        Cell(times(point.speedup), ratio_interval(point), point.speedup, struck),
        _pair(point.ttft_ms_p95, lambda x: number(x, 0)), _pair(point.itl_ms_p95, number),
        _pair(point.request_latency_s_p50, lambda x: number(x, 2)),
        _pair(point.client_cpu_share, percent),
        Cell("limits" if point.client_limited else "–"),
        Cell(NOT_RECORDED) if point.others_share is None else _pair(point.others_share, percent),
    )  # fmt: skip


def _repeats(point: SpeedPoint) -> Cell:
    return Cell(
        str(point.repeats), f"in {point.blocks} blocks" if point.blocks > 1 else "", point.repeats
    )


def _pair(values: Mapping[Any, float], text: Callable[[float], str]) -> Cell:
    return Cell(f"{text(values[BASE])} → {text(values['candidate'])}", key=values["candidate"])


def diagnosis_table(candidates: Iterable[CandidateComparison]) -> Table:
    """Builds a table of the expected speed-up of decoding, and the share of it that was reached."""
    columns = (
        "Candidate", "Kernel that served¶", "Most of the time goes into",
        "Weights read per token, base → candidate#",
        "Expected speed-up of decoding#", "Share of it reached#",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(c.name), Cell(c.kernel),
            Cell(BOUND[d.bound], f"{percent(d.decode_share)} decoding"),
            Cell(f"{byte_text(d.base_bytes_per_token)} → {byte_text(d.candidate_bytes_per_token)}",
                 key=d.candidate_bytes_per_token),
            Cell(times(d.expected_speedup), key=d.expected_speedup, struck=must_not_ship(c)),
            Cell(percent(d.reached), key=d.reached, struck=must_not_ship(c)),
        )
        for c in candidates
        if (d := c.diagnosis) is not None
    )  # fmt: skip
    return Table("Expected and reached, one request at a time", columns, rows)


def capacity_table(comparison: Comparison) -> Table:
    """Builds a table of the goodput search's outcome for base and candidates."""
    columns = (
        "Model", "Concurrent requests, 95 % interval#", "Output tokens/s there#",
        "Per million output tokens#",
        "Why the search ended¶",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(name), Cell(capacity_text(found), capacity_interval(found), found.streams, struck),
            Cell(number(found.output_tokens_per_s) if found.measured else "–",
                 key=found.output_tokens_per_s,
                 struck=struck),
            cost_cell(model, struck=struck), Cell(found.stopped),
        )
        for name, found, model, struck in _capacities(comparison)
    )  # fmt: skip
    return Table("Capacity and cost within the latency objectives", columns, rows)


def probe_table(comparison: Comparison) -> Table:
    """Builds a table of every load that the goodput search tried."""
    columns = (
        "Model",
        "Concurrent requests#",
        "Requests#",
        "Met the objectives#",
        "Result",
        "Output tokens/s#",
    )
    rows = tuple(
        (
            Cell(name), Cell(str(probe.streams), key=probe.streams),
            Cell(count(probe.requests), key=probe.requests),
            Cell(percent(probe.attainment, 1),
                 "{:.1f} to {:.1f} %".format(*(100 * x for x in probe.ci95)),
                 probe.attainment),
            Cell("passed" if probe.passed else "failed"),
            Cell(number(probe.output_tokens_per_s), key=probe.output_tokens_per_s),
        )
        for name, found, _, _ in _capacities(comparison)
        for probe in found.probes
    )  # fmt: skip
    return Table("Loads tried, in order", columns, rows)


def _capacities(
    comparison: Comparison,
) -> list[tuple[str, Capacity, BaseComparison | CandidateComparison, bool]]:
    """Lists (name, capacity, model, struck) of the models whose capacity was searched."""
    base = comparison.base
    models: list[tuple[str, Capacity | None, BaseComparison | CandidateComparison, bool]]
    models = [(BASE, base.capacity, base, False)]
    models += [(c.name, c.capacity, c, must_not_ship(c)) for c in comparison.candidates]
    return [
        (name, found, model, struck) for name, found, model, struck in models if found is not None
    ]


def model_table(comparison: Comparison) -> Table:
    """Builds a table of the models: scheme, origin, size and kernel."""
    rows = [(Cell(BASE), Cell("uncompressed"), Cell("–"),
             Cell(byte_text(comparison.base.size_bytes),
             key=comparison.base.size_bytes), Cell("–"))]  # fmt: skip
    rows += [
        (Cell(c.name), Cell(c.scheme, c.algorithm), Cell(c.origin),
         Cell(byte_text(c.size_bytes), key=c.size_bytes),
         Cell(c.kernel))
        for c in comparison.candidates
    ]  # fmt: skip
    columns = ("Model", "Scheme and algorithm", "Origin¶", "Size#", "Kernel that served¶")
    return Table("The models", columns, tuple(rows))
