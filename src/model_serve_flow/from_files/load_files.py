"""Reads the output tokens/s that GuideLLM 0.8 or `vllm bench serve` measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from model_serve_flow.errors import BadInput
from model_serve_flow.from_files.sides import Load, concurrent
from model_serve_flow.measure.guidellm.report import OfAll, OfCompleted, Part, Totals
from model_serve_flow.system.files import read_document
from model_serve_flow.system.records import Count, NonNegative, Positive

GUIDELLM, VLLM = "GuideLLM", "vllm bench"
VLLM_KEYS = {"output_throughput", "request_rate", "completed"}
ERRORS = "{} requests failed"
NOTHING = "no output tokens"


class _Strategy(Part):
    """GuideLLM's load: a concurrency, or requests per second."""

    type_: str
    streams: Annotated[int, Field(gt=0)] | None = None
    rate: Positive | None = None

    @property
    def words(self) -> str:
        if self.streams is not None:
            return concurrent(self.streams)
        return self.type_ if self.rate is None else f"{self.rate:g} requests/s ({self.type_})"


class _Config(Part):
    strategy: _Strategy


class _Metrics(Part):
    request_totals: Totals
    output_token_count: OfCompleted
    prompt_token_count: OfCompleted
    output_tokens_per_second: OfAll


class _Load(Part):
    config: _Config
    metrics: _Metrics

    def load(self) -> Load:
        metrics = self.metrics
        return Load(
            self.config.strategy.words,
            metrics.output_tokens_per_second.total.mean,
            metrics.prompt_token_count.successful.mean,
            metrics.output_token_count.successful.mean,
            _problem(metrics.request_totals.errored, metrics.output_tokens_per_second.total.mean),
        )


class _GuidellmReport(Part):
    benchmarks: Annotated[tuple[_Load, ...], Field(min_length=1)]


class _VllmBench(Part):
    """One result of `vllm bench serve --save-result`."""

    completed: Count
    failed: Count = 0
    num_prompts: Count = 0
    total_input_tokens: Count
    total_output_tokens: Count
    output_throughput: NonNegative
    request_rate: Positive | Literal["inf"]
    max_concurrency: Annotated[int, Field(gt=0)] | None = None

    def load(self) -> Load:
        parts = [] if self.request_rate == "inf" else [f"{self.request_rate:g} requests/s"]
        if self.max_concurrency is not None:
            parts.append(concurrent(self.max_concurrency))
        completed = max(self.completed, 1)
        return Load(
            ", ".join(parts) or "all requests at once",
            self.output_throughput,
            self.total_input_tokens / completed,
            self.total_output_tokens / completed,
            _problem(max(self.failed, self.num_prompts - self.completed), self.output_throughput),
        )


def is_guidellm(document: Any) -> bool:
    """Checks whether the JSON comes from `guidellm run`."""
    return isinstance(document, dict) and "benchmarks" in document and "metadata" in document


def is_vllm_bench(document: Any) -> bool:
    """Checks whether the JSON comes from `vllm bench serve`."""
    return isinstance(document, dict) and document.keys() >= VLLM_KEYS


def read_guidellm(path: Path) -> tuple[Load, ...]:
    """Reads every load of a GuideLLM file.

    Raises:
        FlowError: names the file and the wrong field.
    """
    report = read_document(path, _GuidellmReport, "a JSON output of GuideLLM 0.8", "Was it cut?")
    return tuple(load.load() for load in report.benchmarks)


def read_vllm_bench(path: Path) -> tuple[Load, ...]:
    """Reads a result file of vLLM; with --append-result it holds several results.

    Raises:
        BadInput: names the file and the wrong field.
    """
    return tuple(_vllm_result(path, document).load() for document in json_documents(path))


def json_documents(path: Path) -> Iterator[Any]:
    """Yields every JSON document of a file.

    Raises:
        BadInput: the file is not JSON.
    """
    decoder, text, place = json.JSONDecoder(), _text(path), 0
    while place < len(text):
        try:
            document, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path} is not valid JSON: {error}.") from error
        yield document
        place += len(text[place:]) - len(text[place:].lstrip())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from error


def _vllm_result(path: Path, document: Any) -> _VllmBench:
    try:
        return _VllmBench.model_validate(document)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"{path} is not a result of vllm bench serve: {field}: {first['msg']}."
        raise BadInput(problem) from error


def _problem(errored: int, output_tokens_per_s: float) -> str:
    if errored:
        return ERRORS.format(errored)
    return NOTHING if output_tokens_per_s == 0 else ""
