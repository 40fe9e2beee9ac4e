"""Scores the same questions with stock `local-completions` and with the flow's own client.

`make bench-accuracy` writes `docs/benchmarks/accuracy.json`: the prompt tokens that vLLM computed
(by its own counters), the wall time, and how far the answers agree. Both clients use the same
server.

Stock lm-eval asks a quarter of the items twice, the second time in other batches. What changes then
is the engine's noise floor, against which the agreement is judged.

With 200 items of each task it takes an hour on two idle cores. lm-eval's own tasks come from the
hub, or from a mirror (`MODEL_SERVE_FLOW_MIRROR`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from model_serve_flow.flow.default_profile import default_profile
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure import accuracy
from model_serve_flow.serve.launch import serve
from model_serve_flow.serve.server import Server
from model_serve_flow.setup import offline
from model_serve_flow.system.files import write_json

SUBJECTS = 20  # of MMLU's 57, at even distances
PER_SUBJECT = 10
TWICE = 4  # stock asks one item of this many twice
STOCK = "local-completions"
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "accuracy.json"
COUNTERS = {
    "computed_tokens": 'vllm:prompt_tokens_by_source_total{.*source="local_compute"',
    "cached_tokens": 'vllm:prompt_tokens_by_source_total{.*source="local_cache_hit"',
    "prompts": "vllm:request_success_total{",
}


@dataclass(frozen=True)
class Suite:
    """Tasks that are measured together."""

    name: str
    tasks: tuple[str, ...]
    items: int  # of each task
    examples: int | None = None  # none: the task's own number


def suites(items: int) -> list[Suite]:
    """Lists the suites: `items` items of each task, and 10 items of each MMLU subject."""
    from lm_eval.tasks.mmlu._generate_configs import SUBJECTS as ALL

    subjects = tuple(f"mmlu_{list(ALL)[place * len(ALL) // SUBJECTS]}" for place in range(SUBJECTS))
    return [
        Suite("mmlu_dev", ("mmlu_dev",), items),
        Suite("word_analogies", ("word_analogies",), items),
        Suite("MMLU, 0-shot", subjects, PER_SUBJECT, 0),
        Suite("MMLU, 5-shot", subjects, PER_SUBJECT, 5),
        Suite("ARC easy", ("arc_easy",), items),
        Suite("ARC challenge", ("arc_challenge",), items),
        Suite("HellaSwag", ("hellaswag",), items),
        Suite("ARC easy, 5-shot", ("arc_easy",), items // 4, 5),
        Suite("wikipedia", ("wikipedia",), items),
        Suite("IFEval", ("ifeval",), max(1, items // 50)),
    ]


@dataclass(frozen=True)
class Run:
    """One evaluation: its answers and its cost."""

    seconds: float  # inside lm-eval's client: from the first request to the last answer
    work: dict[str, int]
    requests: dict[str, int]
    metrics: dict[str, float]
    answers: dict[tuple[str, int], list[Any]]  # (task, document) -> an answer per request


def measure(flow: Flow, server: Server, suite: Suite, *, stock: bool, again: bool = False) -> Run:
    """Scores the suite with lm-eval's own client (`stock`) or with ours.

    Args:
        again: use the batches of the second measurement.
    """
    settings = {"tasks": suite.tasks, "limit": suite.items, "num_fewshot": suite.examples}
    config = flow.config.model_copy(
        update={"accuracy": flow.config.accuracy.model_copy(update=settings)}
    )
    config = accuracy.second_measurement(config) if again else config
    log = flow.workspace.logs / "bench-accuracy.log"
    before = counters(server)
    with as_stock() if stock else contextlib.nullcontext(), timed() as seconds:
        raw, requests = accuracy.evaluate(Flow(config, flow.workspace), server, log)
    work = {name: value - before[name] for name, value in counters(server).items()}
    return Run(sum(seconds), work, requests, metrics(raw), answers(raw))


@contextlib.contextmanager
def as_stock() -> Iterator[None]:
    """Makes the flow's own call of lm-eval use `local-completions`, and changes nothing else."""
    ours = accuracy._endpoint

    def endpoint(flow: Flow, server: Server, **_: Any) -> dict[str, Any]:
        return ours(flow, server) | {"model": STOCK}

    with mock.patch.object(accuracy, "_endpoint", endpoint):
        yield


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Records the seconds of every call of lm-eval's client."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.api_models import TemplateAPI

    seconds: list[float] = []

    def timing(call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            try:
                return call(*args, **kwargs)
            finally:
                seconds.append(time.monotonic() - started)

        return run

    with contextlib.ExitStack() as patches:
        for owner, name in (
            (TemplateLM, "loglikelihood"),
            (TemplateAPI, "loglikelihood_rolling"),
            (TemplateAPI, "generate_until"),
        ):
            patches.enter_context(mock.patch.object(owner, name, timing(getattr(owner, name))))
        yield seconds


def counters(server: Server) -> dict[str, int]:
    """Reads vLLM's own counters, which count from its start."""
    with server.client() as client:
        lines = client.get("/metrics").raise_for_status().text.splitlines()
    return {
        name: sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if re.match(pattern, line))
        for name, pattern in COUNTERS.items()
    }


def metrics(raw: Mapping[str, Any]) -> dict[str, float]:
    """Returns lm-eval's figures by task and metric."""
    return {
        f"{task} {key.removesuffix(',none')}": value
        for task, figures in raw["results"].items()
        for key, value in figures.items()
        if "," in key and "_stderr" not in key and isinstance(value, float)
    }


def answers(raw: Mapping[str, Any]) -> dict[tuple[str, int], list[Any]]:
    """Returns the answers of every item, one for each request.

    An answer is (log-likelihood, greedy), a log-likelihood, or a text.
    """
    return {
        (task, sample["doc_id"]): [response[0] for response in sample["resps"]]
        for task, samples in raw["samples"].items()
        for sample in samples
    }


def agreement(stock: Run, again: Run, ours: Run) -> dict[str, Any]:
    """Compares our answers with those of stock lm-eval.

    The engine's noise is reported beside it: stock lm-eval against itself in other batches.
    """
    if stock.answers.keys() != ours.answers.keys():
        raise AssertionError("not the same items")
    if isinstance(next(iter(stock.answers.values()))[0], str):
        other, engine = (
            sum(run.answers[item] != stock.answers[item] for item in run.answers)
            for run in (ours, again)
        )
        return {
            "items": len(stock.answers),
            "other_texts": other,
            "asked_twice": len(again.answers),
            "engine": engine,
        }
    values = likelihoods(stock, stock.answers)
    noise = np.abs(likelihoods(again, again.answers) - likelihoods(stock, again.answers))
    off = np.abs(likelihoods(ours, stock.answers) - values)
    floor = float(noise.max())
    gaps = [
        gap
        for item in stock.answers
        if (gap := choice_gap(stock.answers[item], ours.answers[item])) is not None
    ]
    return {
        "items": len(stock.answers),
        "asked_twice": len(again.answers),
        "log_likelihoods": len(values),
        "difference": spread(off),
        "noise_floor": spread(noise),
        "within_noise": float(off.max()) <= floor,
        "other_choices": len(gaps),
        "other_choices_beyond_noise": sum(gap > floor for gap in gaps),
        "other_choices_of_the_engine": sum(
            choice_gap(stock.answers[item], again.answers[item]) is not None
            for item in again.answers
        ),
        "largest_difference_of_a_metric": largest(ours.metrics, stock.metrics),
        "largest_noise_of_a_metric": largest(again.metrics, stock.metrics)
        if again.answers.keys() == stock.answers.keys()
        else None,
    }


def likelihoods(run: Run, items: Iterable[tuple[str, int]]) -> np.ndarray:
    """Returns the log-likelihoods of these items, in the same order for every run."""
    everything = [one for item in sorted(items) for one in run.answers[item]]
    return np.array([one[0] if isinstance(one, tuple | list) else one for one in everything])


def choice_gap(stock: list[Any], other: list[Any]) -> float | None:
    """Computes how much likelier stock finds its own choice than the other client's choice.

    Returns:
        The gap in nats; None if both chose the same.
    """
    if len(stock) < 2 or not isinstance(stock[0], tuple | list):
        return None
    first, second = (
        max(range(len(found)), key=lambda place: found[place][0]) for found in (stock, other)
    )
    return None if first == second else float(stock[first][0] - stock[second][0])


def spread(differences: np.ndarray) -> dict[str, float]:
    """Summarises differences, in nats."""
    return {
        "median": float(np.median(differences)),
        "p99": float(np.quantile(differences, 0.99)),
        "largest": float(differences.max()),
    }


def largest(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Finds the largest difference of a figure."""
    return max(abs(one[name] - other[name]) for name in other)


def compare(flow: Flow, server: Server, suite: Suite, *, twice: int = TWICE) -> dict[str, Any]:
    """Measures one suite with stock, with ours, and a part of it with stock again.

    Args:
        twice: stock asks one of every `twice` items again, in other batches.
    """
    stock = measure(flow, server, suite, stock=True)
    ours = measure(flow, server, suite, stock=False)
    few = replace(suite, items=max(1, suite.items // twice))
    again = measure(flow, server, few, stock=True, again=True)

    def taken(run: Run) -> dict[str, Any]:
        return {"seconds": round(run.seconds, 2), **run.work}

    return {
        **asdict(suite),
        "stock": taken(stock),
        "stock_again": taken(again),
        "ours": taken(ours) | {"requests": ours.requests},
        "tokens_ratio": round(ours.work["computed_tokens"] / stock.work["computed_tokens"], 4),
        "seconds_ratio": round(ours.seconds / stock.seconds, 4),
        "agreement": agreement(stock, again, ours),
        "metrics": {name: [stock.metrics[name], ours.metrics[name]] for name in stock.metrics},
    }


def main() -> None:
    """Measures all suites; after each, writes the figures and prints a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = default_profile()
    described = f"gives the model and the engine's settings; 00 must have run; by default {default}"
    parser.add_argument("profile", nargs="?", default=default, help=described)
    parser.add_argument("--items", type=int, default=200, help="of each task")
    parser.add_argument("--only", help="suites whose name holds this")
    parser.add_argument("--output", type=Path, default=FIGURES)
    given = parser.parse_args()
    os.environ.update(offline.variables())  # before lm-eval is imported
    flow = Flow.open(given.profile)
    figures: dict[str, Any] = {"profile": given.profile, "order_of_metrics": ["stock", "ours"]}
    with serve(
        flow, "base", purpose="accuracy", meanwhile=lambda: accuracy.prepare_evaluation(flow)
    ) as server:
        measure(flow, server, Suite("warm-up", ("mmlu_dev",), 1), stock=True)
        figures |= {"engine": server.facts().version, "arguments": server.arguments, "suites": []}
        for suite in suites(given.items):
            if given.only and given.only not in suite.name:
                continue
            figures["suites"].append(found := compare(flow, server, suite))
            write_json(given.output, figures)
            print(
                suite.name,
                json.dumps(
                    {key: found[key] for key in ("tokens_ratio", "seconds_ratio", "agreement")}
                ),
            )


if __name__ == "__main__":
    main()
