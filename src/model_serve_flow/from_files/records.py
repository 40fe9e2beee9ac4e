"""Defines the result of a comparison from files: the contract of `--json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_serve_flow.flow.results.compared import Decision, Difference, FlippedItem, Tier
from model_serve_flow.system.records import Count, NonNegative, Positive, Record

Pace = Literal["FASTER", "NOT FASTER", "UNSURE"]


class Source(Record):
    """The files of one side."""

    path: str
    kinds: tuple[str, ...] = Field(description="what was recognised, e.g. 'lm-eval'")
    model: str = Field(default="", description="as the files name it; empty: they do not")


class ComparedTask(Record):
    """One task that both sides have."""

    tier: Tier
    primary: str = Field(description="the metric that counts")
    metrics: dict[str, Difference]
    flipped: tuple[FlippedItem, ...] = ()

    @property
    def difference(self) -> Difference:
        """The difference in the metric that counts."""
        return self.metrics[self.primary]


class ComparedLoad(Record):
    """Output tokens/s of both sides at one load."""

    load: str = Field(description="e.g. '8 concurrent requests'")
    repeats: tuple[Count, Count] = Field(description="measurements of base and candidate")
    base_output_tokens_per_s: NonNegative | None = None
    candidate_output_tokens_per_s: NonNegative | None = None
    speedup: Positive | None = Field(
        default=None,
        description="ratio of the geometric means; none: not compared",
    )
    speedup_ci95: tuple[Positive, Positive] | None = Field(
        default=None,
        description="by Welch",
    )
    pace: Pace
    reason: str = Field(default="", description="why it is unsure, where that is not its interval")


class FileComparison(Record):
    """The verdict on two sides from files, with everything that led to it."""

    kind: Literal["file-comparison"] = "file-comparison"
    schema_version: Literal["1.0"] = "1.0"
    verdict: Decision
    exit_code: int
    sentence: str
    reasons: tuple[str, ...]
    base: Source
    candidate: Source
    suite: Difference | None = Field(
        default=None,
        description="mean over the tasks that decide; none: no task can",
    )
    tasks: dict[str, ComparedTask] = Field(default={}, description="task -> what was found")
    missing: tuple[str, ...] = Field(default=(), description="required tasks that a side lacks")
    speed: tuple[ComparedLoad, ...] = ()
    notes: tuple[str, ...] = ()
