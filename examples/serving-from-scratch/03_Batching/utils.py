"""Provides what the notebook of 03_Batching uses: loads, replays, and charts."""

import itertools
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.batching import (
    BatchingStrategy,
    ChunkedPrefill,
    Continuous,
    Dynamic,
    OneByOne,
    Static,
)
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.engine.replay import Timeline, replay
from serving_from_scratch.model.loading import ModelManager

__all__ = [
    "ChunkedPrefill",
    "Continuous",
    "Dynamic",
    "Flow",
    "Lesson",
    "OneByOne",
    "Static",
    "figures",
    "gap_chart",
    "gap_figures",
    "padding_chart",
    "prepare_base",
    "request_table",
    "some_requests",
    "streams_and_a_long_prompt",
    "timelines_chart",
    "waits",
    "write_json",
]

WAITING, PROMPT = "#dfe3e8", "#4a4f57"
LONG = "long"


class Lesson:
    """Serves loads with any strategy and cache, by a model in this process.

    Args:
        base: the checkpoint.
        places: how many requests run at once.
    """

    def __init__(self, base: Path, places: int) -> None:
        self.base = base
        self.places = places
        self._manager = ModelManager()
        warm_up = [Request("warm-up", tuple(range(5, 50)), SamplingParameters(max_tokens=4))]
        self.serve(OneByOne(), warm_up)

    def serve(
        self,
        strategy: BatchingStrategy,
        requests: Sequence[Request],
        cache: str = "slots",
    ) -> Timeline:
        """Serves requests at their arrival times, in 32-bit numbers."""
        options = ModelOptions(
            str(self.base),
            "float32",
            cache=cache,
            places=self.places,
            length=1024,
        )
        executor = InProcess(self._manager.runner(options))
        scheduler = Scheduler(strategy, options.memory(), self.places)
        return replay(scheduler, executor, list(requests))


def some_requests(count: int, seconds: float = 1.0, seed: int = 4) -> list[Request]:
    """Makes requests that arrive within `seconds`.

    Prompts have 8 to 100 tokens, answers 4 to 36.
    """
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        prompt = tuple(draw.randrange(100, 20_000) for _ in range(draw.randint(8, 100)))
        sampling = SamplingParameters(max_tokens=draw.randint(4, 36), ignore_eos=True)
        arrived = max(0, number - 3) * seconds / max(1, count - 4)
        requests.append(Request(f"{number + 1}", prompt, sampling, arrived))
    return requests


def streams_and_a_long_prompt(tokens: int) -> list[Request]:
    """Makes three streams, and a long prompt that arrives half a second later."""
    draw = random.Random(1)
    prompt = tuple(draw.randrange(100, 20_000) for _ in range(tokens))
    stream = SamplingParameters(max_tokens=40, ignore_eos=True)
    short = SamplingParameters(max_tokens=4, ignore_eos=True)
    streams = [Request(f"{n + 1}", prompt[n * 20 : n * 20 + 20], stream) for n in range(3)]
    return [*streams, Request(LONG, prompt, short, arrived=0.5)]


def request_table(requests: Sequence[Request]) -> pd.DataFrame:
    """Lists arrival time, prompt and answer of each request."""
    rows = {
        request.id: {
            "arrives, s": round(request.arrived, 2),
            "prompt, tokens": len(request.prompt),
            "answer, tokens": request.sampling.max_tokens,
        }
        for request in requests
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("request")


def timelines_chart(timelines: dict[str, Timeline]) -> None:
    """Draws when each request waited and computed: one panel per strategy, one line per request."""
    with house_style():
        lines = sum(len(timeline.sequences) for timeline in timelines.values())
        size = (9.4, 0.11 * lines + 0.6 * len(timelines))
        figure, axes = plt.subplots(len(timelines), 1, figsize=size, sharex=True)
        for axis, (name, timeline), colour in zip(axes, timelines.items(), PALETTE, strict=False):
            draw_timeline(axis, timeline, colour)
            axis.set_title(f"{name}: {timeline.moments[-1].ended:.1f} s", fontsize=10, loc="left")
        axes[-1].set_xlabel("Seconds")
        figure.tight_layout()
        plt.show()


def draw_timeline(axis: Axes, timeline: Timeline, colour: str) -> None:
    """Draws the requests of one strategy, the first at the top."""
    lines = {id: place for place, id in enumerate(timeline.sequences)}
    for id, sequence in timeline.sequences.items():
        waits = timeline.tokens[id][-1] - sequence.request.arrived
        axis.barh(lines[id], waits, left=sequence.request.arrived, color=WAITING, height=0.35)
    for moment in timeline.moments:
        for chunk in moment.step.chunks:
            prompt = len(timeline.sequences[chunk.request].request.prompt)
            shade = PROMPT if chunk.start < prompt and chunk.end <= prompt else colour
            seconds = moment.ended - moment.started
            axis.barh(lines[chunk.request], seconds, left=moment.started, color=shade, height=0.8)
    axis.set_yticks([])
    axis.invert_yaxis()
    axis.grid(False, axis="y")


def figures(timelines: dict[str, Timeline], places: int) -> pd.DataFrame:
    """Computes speed, waiting times and the use of places for each strategy."""
    rows = {
        name: {
            "output tokens/s": round(timeline.output_tokens_per_second, 1),
            "TTFT median, s": round(statistics.median(timeline.ttft()), 2),
            "TTFT longest, s": round(max(timeline.ttft()), 2),
            "longest gap, ms": round(max(timeline.gaps()) * 1e3),
            "steps": len(timeline.moments),
            "tokens a step": round(timeline.row_length(), 1),
            "places used, %": round(places_used(timeline) / places * 100),
        }
        for name, timeline in timelines.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def places_used(timeline: Timeline) -> float:
    """Computes the mean number of sequences per step."""
    return statistics.fmean(len(moment.step.chunks) for moment in timeline.moments)


def padding_chart(requests: Sequence[Request]) -> dict[str, int]:
    """Draws a static batch as a rectangle, and counts the tokens that it wastes."""
    prompts = [len(request.prompt) for request in requests]
    answers = [request.sampling.max_tokens for request in requests]
    picture = np.zeros((len(requests), max(prompts) + max(answers)))
    for line, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        picture[line, max(prompts) - prompt : max(prompts)] = 1
        picture[line, max(prompts) : max(prompts) + answer] = 2
    useful = int((picture > 0).sum())
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 1.9))
        colours = ListedColormap([WAITING, PROMPT, PALETTE[1]])
        axis.imshow(picture, aspect="auto", cmap=colours, interpolation="nearest")
        percent = 100 - 100 * useful / picture.size
        axis.set_title(f"Dark: prompts. Coloured: answers. Grey, {percent:.0f} %: for nothing")
        axis.set(xlabel="Place in the rectangle, tokens", yticks=[])
        axis.grid(False)
        figure.tight_layout()
        plt.show()
    return {"rectangle_tokens": picture.size, "useful_tokens": useful}


def gap_chart(timelines: dict[str, Timeline]) -> None:
    """Draws the milliseconds before each token of the first stream."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 3.2))
        for (name, timeline), colour in zip(timelines.items(), PALETTE, strict=False):
            times = timeline.tokens["1"]
            gaps = [(b - a) * 1e3 for a, b in itertools.pairwise(times)]
            axis.plot(times[1:], gaps, ".-", color=colour, label=name)
        axis.set(xlabel="Seconds", ylabel="Since the token before, ms", ylim=0)
        axis.legend()
        figure.tight_layout()
        plt.show()


def gap_figures(timelines: dict[str, Timeline]) -> pd.DataFrame:
    """Computes the longest gap of the streams, and the TTFT of the long prompt."""
    rows = {
        name: {
            "longest gap of a stream, ms": round(max(timeline.gaps()) * 1e3),
            "TTFT of the long prompt, ms": round(timeline.ttft()[-1] * 1e3),
        }
        for name, timeline in timelines.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def waits(timelines: dict[str, Timeline]) -> pd.DataFrame:
    """Computes the mean and the longest TTFT of each strategy."""
    rows = {
        name: {
            "TTFT mean, s": round(statistics.fmean(timeline.ttft()), 2),
            "TTFT longest, s": round(max(timeline.ttft()), 2),
        }
        for name, timeline in timelines.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
