"""Builds what follows the verdict in a report: evidence, methods, and ranking."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model_serve_flow.compare import reading
from model_serve_flow.compare.margins import seal_sentence
from model_serve_flow.compare.ranking import rankable
from model_serve_flow.compare.reading import offers
from model_serve_flow.flow.results.compared import CandidateComparison, Comparison
from model_serve_flow.flow.results.measured import BASE
from model_serve_flow.report import tables
from model_serve_flow.report.formatting import dollars, number, objectives
from model_serve_flow.report.tables import Cell, Table

READING = (
    "'Reading' is the verdict's own: "
    "corrected for the number of tasks and candidates (Holm), and with the share of the base's "
    "score that must be kept. The intervals "
    "of the deciding tasks hold together (simultaneous 95 %): one is clear of the accepted drop "
    "exactly where the reading says so. Where some tasks are open, the interval of a task that is "
    "decided ends at its accepted drop. Smallest detectable drop: the true drop that so many items "
    "find with 80 % power."
)
SAME_LOAD = (
    "Base and candidates got the same prompts at the same number of concurrent requests. 'Limits' "
    "marks a load point at which the load generator took CPU that the server needed: there the "
    "server could do better."
)
SOFT = (
    "Secondary endpoint, it decides nothing: the probability that a model gives the right one of "
    "the choices. It moves also where the answer stays, so it sees losses that right or wrong "
    "cannot see, and gains of no use to a reader of the answers."
)
SHARED = (
    "A model is ranked behind those that are surely better: all intervals of differences hold "
    "together in 95 %, and models that cannot be told apart share a rank."
)
WHAT_IT_HOLDS = {  # key: whether there are several blocks
    True: "The interval of a speed-up holds what differs between starts of a server and over time "
    "on this machine; not what differs between machines.",
    False: "Each model was measured on one server: the interval of a speed-up holds what differs "
    "between repeats, not between two starts, which can be more (performance.blocks measures "
    "that).",
}
UNASKED = "Not measured: the profile has no section {}."
UNSAID = "What the verdict does not say stands in docs/Statistics.md, in the section of that name."


@dataclass(frozen=True)
class Note:
    """A sentence; struck through if it praises a candidate that must not ship."""

    text: str
    struck: bool = False


@dataclass(frozen=True)
class Section:
    """One question of the evidence: sentences, tables, and tables folded under a summary."""

    title: str
    notes: tuple[Note, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()


def sections(comparison: Comparison, flips_shown: int = tables.EMBEDDED_FLIPS) -> list[Section]:
    """Lists the sections of evidence in the order in which they are read.

    Args:
        comparison: the result of step 06.
        flips_shown: highest number of flipped items shown per candidate.
    """
    found = [
        *_answers(comparison, flips_shown),
        *_service(comparison),
        Section("The models", tables=(tables.model_table(comparison),)),
        Section("How the numbers are made", (Note(UNSAID),), (methods(comparison),)),
    ]  # fmt: skip
    return [section for section in found if section.notes or section.tables]


def _answers(comparison: Comparison, flips_shown: int) -> list[Section]:
    """Builds the sections on what the models answered."""
    title, candidates = "Accuracy", comparison.candidates
    if "accuracy" not in comparison.protocol:
        return [Section(title, (Note(UNASKED.format("accuracy")),))]
    slices = tables.slice_table(candidates)
    folded = ((slice_finding(candidates), slices),) if slices.rows else ()
    return [
        Section(title, _margins(comparison), (tables.accuracy_table(candidates),), folded),
        _soft(candidates),
        Section("Which answers changed", (Note(shift_note(comparison)),),
                (tables.shift_table(comparison),),
                _flipped(candidates, flips_shown)),
    ]  # fmt: skip


def _service(comparison: Comparison) -> list[Section]:
    """Builds the sections on how the models were served."""
    title, candidates = "Speed under the same load", comparison.candidates
    if "performance" not in comparison.protocol:
        return [Section(title, (Note(UNASKED.format("performance")),))]
    notes = (Note(SAME_LOAD), Note(WHAT_IT_HOLDS[blocks_of(comparison) > 1]))
    return [
        Section(title, notes, (tables.speed_table(candidates),)),
        _diagnosis(candidates),
        _capacity(comparison),
    ]


def _soft(candidates: Iterable[CandidateComparison]) -> Section:
    """Builds the section on the soft score; it is empty if no task has this score."""
    table = tables.soft_table(candidates)
    return (
        Section("How sure is it of the right answer?", (Note(SOFT),), (table,))
        if table.rows
        else Section("")
    )


def slice_finding(candidates: Iterable[CandidateComparison]) -> str:
    """Says how many parts of tasks differ."""
    readings = [tables.slice_reading(part) for candidate in candidates for part in candidate.slices]
    worse, small = readings.count("significantly worse"), readings.count("too small to tell")
    return (
        f"Parts of tasks: {worse} of {len(readings)} significantly worse, {small} too small to tell"
    )


def shift_note(comparison: Comparison) -> str:
    """Explains the noise floor, and the bound of the divergence with its number of tokens."""
    floor = (
        "The first row is the noise floor: items of the base asked twice, the second time in other "
        "batches. "
    )
    known = next((c.kl for c in comparison.candidates if c.kl is not None), None)
    if known is None:
        return f"{floor}Next-token distributions were not compared."
    return (
        f"{floor}KL divergence is that of the next-token distributions on {known.tokens:,} tokens "
        f"of held-out text: a lower bound, k = {known.k} (the {known.k} likeliest tokens of each "
        "side are known, and the text's own; no other token can be likelier than the last of "
        "these). Intervals are over documents."
    )


def _flipped(
    candidates: Iterable[CandidateComparison], shown: int
) -> tuple[tuple[str, Table], ...]:
    folded = []
    for candidate in candidates:
        wrong = sum(item.became == "wrong" for item in candidate.flipped)
        total = len(candidate.flipped)
        summary = (
            f"{candidate.name}: {total:,} answers flipped, {wrong:,} became wrong and "
            f"{total - wrong:,} right"
        )
        if total > shown:
            summary += f" ({shown} are shown; comparison.json has all)"
        if total:
            folded.append((summary, tables.flipped_table(candidate.flipped, shown)))
    return tuple(folded)


def diagnosis_notes(candidates: Iterable[CandidateComparison]) -> tuple[Note, ...]:
    """Lists for each candidate a sentence on why it is as fast as it is."""
    known = [(c, c.diagnosis) for c in candidates if c.diagnosis is not None]
    return tuple(Note(f"{c.name}: {why.sentence}", reading.must_not_ship(c)) for c, why in known)


def _margins(comparison: Comparison) -> tuple[Note, ...]:
    """Explains how the margins are meant and how the profile says they were chosen."""
    chosen = (
        [Note(f"How the profile chose its margins: {comparison.margin_rationale}")]
        if comparison.margin_rationale
        else []
    )
    return Note(f"{seal_sentence(comparison.margins)} {READING}"), *chosen


def _diagnosis(candidates: Iterable[CandidateComparison]) -> Section:
    notes = diagnosis_notes(candidates)
    return Section(
        "Why is it not faster?", notes, (tables.diagnosis_table(candidates),) if notes else ()
    )


def _capacity(comparison: Comparison) -> Section:
    table = tables.capacity_table(comparison)
    models = (comparison.base, *comparison.candidates)
    capacity = next((model.capacity for model in models if model.capacity is not None), None)
    if capacity is None:
        return Section(
            "Capacity and cost", (Note("Not measured: the profile has no latency objectives."),)
        )
    promise = (
        f"Capacity is the highest number of concurrent requests at which {objectives(capacity)}."
    )
    notes = (Note(promise), *map(Note, ranking(comparison)))
    probes = tables.probe_table(comparison)
    return Section(
        "Capacity and cost",
        notes,
        (table,),
        ((f"All {len(probes.rows)} loads that were tried", probes),),
    )


def ranking(comparison: Comparison) -> list[str]:
    """Says how accuracy compares with cost.

    The sentences name the models on the front, the dominated models, and the models that are not
    ranked.
    """
    able = rankable(comparison.candidates)
    front = _front(comparison, able)
    lines = [f"Worth its cost, the cheapest first: {', '.join(front)}."] if front else []
    lines += [
        f"{c.name} is dominated by {c.dominated_by}, which is surely more accurate and surely "
        "cheaper."
        for c in able
        if c.dominated_by is not None
    ]
    lines += _rank_sentences(comparison, able)
    for c in comparison.candidates:
        if reading.must_not_ship(c):
            lines.append(f"{c.name} is not ranked: it must not ship.")
        elif c not in able:
            lines.append(f"{c.name} is not ranked: no task can tell its score.")
    return lines


def _rank_sentences(comparison: Comparison, able: Iterable[CandidateComparison]) -> list[str]:
    """Says the ranks by score and by economy; empty if there are no ranks."""
    places = {BASE: comparison.base.ranks, **{c.name: c.ranks for c in able}}
    known = {name: rank for name, rank in places.items() if rank is not None}
    if not known:
        return []
    score, cost = (
        _places({name: getattr(rank, kind) for name, rank in known.items()})
        for kind in ("score", "economy")
    )
    return [f"Rank by score: {score}. Rank by economy: {cost}. {SHARED}"]


def _places(places: dict[str, int]) -> str:
    """Writes ranks, e.g. '1 base and w8a8-int8, 3 w4a16-int4'."""
    names = {
        rank: [name for name, place in places.items() if place == rank]
        for rank in sorted(set(places.values()))
    }
    return ", ".join(f"{rank} {' and '.join(found)}" for rank, found in names.items())


def _front(comparison: Comparison, able: Iterable[CandidateComparison]) -> list[str]:
    """Lists the models that no other model surely dominates, the cheapest first.

    Score and cost are added where they are known.
    """
    costs = {offer.name: offer for offer in offers(comparison)}
    front = [c.name for c in able if c.dominated_by is None]
    front += [offer.name for offer in costs.values() if offer.verdict is None and offer.on_front]
    front.sort(key=lambda name: costs[name].cost if name in costs else math.inf)
    return [
        f"{name} ({number(costs[name].score)} points for {dollars(costs[name].cost)})"
        if name in costs
        else name
        for name in front
    ]


# --- How each number is made ---

INTERVALS = "Paired differences"
TESTS = {
    "mcnemar": ("McNemar p", "exact, two-sided: could so uneven flips be chance?",
                "Flips and McNemar's test"),
    "soft": ("Probability of the right choice",
             "exp(log-likelihood) over its sum over the choices; paired "
             "t over items, or over clusters where that is wider", "The soft score"),
    "power": ("Smallest detectable drop", "true drop found with 80 % power",
              "What n items can tell"),
    "slices": ("Parts of tasks", "McNemar p with Holm's correction over the parts large enough",
               "Slices"),
    "noise": ("Noise floor",
              "items of the base asked twice, the second time in other batches; Wilson intervals "
              "of the tasks joined by MOVER, weighted by their items", "Noise floor"),
    "kl": ("KL divergence, same likeliest token",
           ("the smallest divergence that the k likeliest tokens of both sides "
            "allow; mean: bootstrap over documents; 99th percentile and agreement: cluster-robust "
            "over documents"),
           "Distribution shift"),
    "capacity": ("Capacity",
                 ("GuideLLM's goodput search, on every server that was started anew; t over the "
                  "servers on the logarithms, and half the gap between the loads that passed and "
                  "failed. One search: no interval"),
                 "Capacity and cost"),
}  # fmt: skip


def methods(comparison: Comparison) -> Table:
    """Builds the table of methods: each with its use and its section of docs/Statistics.md."""
    uses: dict[str, dict[str, None]] = defaultdict(dict)
    for candidate in comparison.candidates:
        for task, metric, d in reading.all_differences(candidate):
            uses[d.method][f"{task} {metric}"] = None
    rows = [
        ("95 % interval of " + ", ".join(names), method, INTERVALS)
        for method, names in uses.items()
    ]
    tests = TESTS | {
        "verdict": _verdict_method(comparison.candidates),
        "speed": _speed_method(comparison),
    }
    rows += [tests[key] for key, used in _used(comparison).items() if used]
    cells = tuple(tuple(Cell(text) for text in row) for row in rows)
    columns = ("Number¶", "Method¶", "Section of docs/Statistics.md¶")
    return Table("Methods", columns, cells, sortable=False)


def _verdict_method(candidates: Sequence[CandidateComparison]) -> tuple[str, str, str]:
    over, count = "Holm over the tasks", len(candidates)
    if count > 1:
        over = (
            f"SHIP: Holm over the tasks and averages of all {count} candidates; DO NOT SHIP: over "
            "the tasks"
        )
    planned = max(
        (candidate.looks.planned for candidate in candidates if candidate.looks), default=1
    )
    if planned > 1:
        over += f"; O'Brien-Fleming bounds over {planned} planned looks (Lan and DeMets)"
    return "Verdict", f"non-inferiority to the margins, one-sided at 2.5 %, {over}", "The verdict"


def _speed_method(comparison: Comparison) -> tuple[str, str, str]:
    blocks = blocks_of(comparison)
    spread = f"paired t over {blocks} blocks" if blocks > 1 else "Welch's t over the repeats"
    return (
        "Speed-up",
        f"ratio of the geometric means, {spread}, on the logarithms. {WHAT_IT_HOLDS[blocks > 1]}",
        "Speed-up",
    )


def blocks_of(comparison: Comparison) -> int:
    """Returns how many times every server was started anew for the speed-up.

    Without a speed-up it returns 1.
    """
    return max(
        (point.blocks for candidate in comparison.candidates for point in candidate.performance),
        default=1,
    )


def _used(comparison: Comparison) -> dict[str, bool]:
    candidates = comparison.candidates
    differences = [d for candidate in candidates for _, _, d in reading.all_differences(candidate)]
    return {
        "mcnemar": any(d.mcnemar_p is not None for d in differences),
        "verdict": bool(differences),
        "soft": any(candidate.soft for candidate in candidates),
        "power": any(d.smallest_detectable_drop is not None for d in differences),
        "slices": any(candidate.slices for candidate in candidates),
        "noise": any(candidate.noise_floor is not None for candidate in candidates),
        "kl": any(candidate.kl is not None for candidate in candidates),
        "speed": any(candidate.performance for candidate in candidates),
        "capacity": any(model.capacity is not None for model in (comparison.base, *candidates)),
    }
