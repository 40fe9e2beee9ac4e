"""Reads the part of GuideLLM's JSON output that we use; errors name the field."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model_serve_flow.system.records import Count, Finite, NonNegative, Positive, Probability

Streams = Annotated[int, Field(gt=0)]
ROUNDING = 1e-6  # an interval that should end at 1 may end slightly below 1


class Part(BaseModel):
    """A part of GuideLLM's output; other keys are ignored, and GuideLLM may add more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Strategy(Part):
    """How GuideLLM created the load: `streams` requests at once."""

    streams: Streams


class LoadConfig(Part):
    """The settings of one load."""

    strategy: Strategy


class Percentiles(Part):
    """Percentiles of one latency."""

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
    """The mean and the percentiles of a latency."""

    percentiles: Percentiles


class OfCompleted(Part):
    """A figure over the completed requests."""

    successful: Mean


class SpreadOfCompleted(Part):
    """A latency over the completed requests."""

    successful: Spread


class OfAll(Part):
    """A figure over all requests, including requests that the end of the load cut off."""

    total: Mean


class Totals(Part):
    """Numbers of requests."""

    successful: Count
    errored: Count
    incomplete: Count
    total: Count


class LoadMetrics(Part):
    """The figures of one load point; latencies are in ms, but `request_latency` is in s."""

    request_totals: Totals
    output_token_count: OfCompleted
    prompt_token_count: OfCompleted
    requests_per_second: OfCompleted
    output_tokens_per_second: OfAll
    time_to_first_token_ms: SpreadOfCompleted
    inter_token_latency_ms: SpreadOfCompleted
    request_latency: SpreadOfCompleted


class Load(Part):
    """One load point; times are in seconds since the epoch."""

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
    """The output of `guidellm run` over load points."""

    benchmarks: tuple[Load, ...]


class SearchedMetrics(Part):
    """The figures of one load of a search."""

    output_tokens_per_second: OfAll


class SearchedLoad(Part):
    """One load of a search."""

    config: LoadConfig
    metrics: SearchedMetrics


class SearchedProbe(Part):
    """The result of the goodput search at one concurrency."""

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
    """The result of a goodput search."""

    probes: tuple[SearchedProbe, ...]
    best_passing_streams: Count | None
    stop_reason: str


class SearchReport(Part):
    """The output of `guidellm run` with a goodput search: one conclusion and its loads."""

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
