"""The part of GuideLLM's JSON output that is read, typed:
what is missing or of another kind is named by its place.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_serve_flow.system.records import Count, Finite, NonNegative, Positive, Probability

Streams = Annotated[int, Field(gt=0)]
ROUNDING = 1e-6  # an interval that ends at 1 may end just below it


class Part(BaseModel):
    """GuideLLM writes much more than is read here, and may add to it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Strategy(Part):
    """How the load was put on: `streams` requests at once."""

    streams: Streams


class LoadConfig(Part):
    """What was asked of one load."""

    strategy: Strategy


class Percentiles(Part):
    """Of one latency."""

    p50: NonNegative
    p95: NonNegative
    p99: NonNegative

    @model_validator(mode="after")
    def rising(self) -> Percentiles:
        if not self.p50 <= self.p95 <= self.p99:
            raise ValueError(f"p50, p95 and p99 do not rise: {self.p50}, {self.p95}, {self.p99}")
        return self


class Mean(Part):
    """The mean of a figure."""

    mean: NonNegative


class Spread(Mean):
    """The mean of a latency with its percentiles."""

    percentiles: Percentiles


class OfCompleted(Part):
    """A figure of the requests that were completed."""

    successful: Mean


class SpreadOfCompleted(Part):
    """A latency of the requests that were completed."""

    successful: Spread


class OfAll(Part):
    """A figure of all requests, those among them that the end of the load cut off."""

    total: Mean


class Totals(Part):
    """Numbers of requests."""

    successful: Count
    errored: Count
    incomplete: Count
    total: Count


class LoadMetrics(Part):
    """What was measured at one load point; latencies in ms, but `request_latency` in s."""

    request_totals: Totals
    output_token_count: OfCompleted
    prompt_token_count: OfCompleted
    requests_per_second: OfCompleted
    output_tokens_per_second: OfAll
    time_to_first_token_ms: SpreadOfCompleted
    inter_token_latency_ms: SpreadOfCompleted
    request_latency: SpreadOfCompleted


class Load(Part):
    """One load point; times in seconds since the epoch."""

    config: LoadConfig
    start_time: Finite
    end_time: Finite
    duration: Positive
    metrics: LoadMetrics

    @model_validator(mode="after")
    def lasts(self) -> Load:
        if self.end_time <= self.start_time:
            raise ValueError(f"end_time {self.end_time} is not after start_time {self.start_time}")
        return self


class LoadReport(Part):
    """`guidellm run` over load points."""

    benchmarks: tuple[Load, ...]


class SearchedMetrics(Part):
    """What was measured at one load of a search."""

    output_tokens_per_second: OfAll


class SearchedLoad(Part):
    """One load of a search."""

    config: LoadConfig
    metrics: SearchedMetrics


class SearchedProbe(Part):
    """What the goodput search concluded of one load."""

    streams: Streams
    determined_requests: Count
    attainment: Probability
    attainment_lower: NonNegative
    attainment_upper: NonNegative
    passed: bool

    @model_validator(mode="after")
    def inside(self) -> SearchedProbe:
        if (
            not self.attainment_lower - ROUNDING
            <= self.attainment
            <= self.attainment_upper + ROUNDING
        ):
            raise ValueError(f"attainment {self.attainment} lies outside its interval")
        return self


class Search(Part):
    """What a search concluded."""

    probes: tuple[SearchedProbe, ...]
    best_passing_streams: Count | None
    stop_reason: str


class SearchReport(Part):
    """`guidellm run` with a goodput search: its one conclusion, and the loads it rests on."""

    benchmarks: tuple[SearchedLoad, ...]
    conclusions: Annotated[tuple[Search, ...], Field(min_length=1, max_length=1)]

    @model_validator(mode="after")
    def loads_are_the_probes(self) -> SearchReport:
        probes, loads = self.conclusions[0].probes, self.benchmarks
        if len(probes) != len(loads):
            raise ValueError(f"there are {len(loads)} loads and {len(probes)} probes")
        for probe, load in zip(probes, loads, strict=True):
            if load.config.strategy.streams != probe.streams:
                found = load.config.strategy.streams
                raise ValueError(
                    f"a load of {found} streams stands where the search says {probe.streams}"
                )
        best = self.conclusions[0].best_passing_streams
        if best and best not in {probe.streams for probe in probes if probe.passed}:
            raise ValueError(f"no load of {best} streams passed, which best_passing_streams says")
        return self
