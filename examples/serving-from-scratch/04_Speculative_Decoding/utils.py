"""Provides what the notebook of 04_Speculative_Decoding uses: texts, replays, costs and charts."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.core.batching import Continuous
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.proposers import Draft, NGram, NoProposer, Proposer, speed_up
from serving_from_scratch.core.request import Request, SamplingParameters
from serving_from_scratch.core.scheduler import Scheduler
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.executor import InProcess
from serving_from_scratch.engine.replay import Timeline, replay
from serving_from_scratch.engine.text import Text
from serving_from_scratch.model.loading import ModelManager
from serving_from_scratch.model.proposers import DraftRunner
from serving_from_scratch.model.runner import ModelRunner

__all__ = [
    "Flow",
    "Lesson",
    "NGram",
    "NoProposer",
    "Runs",
    "acceptance_chart",
    "cost_chart",
    "draft_of_layers",
    "draft_of_precision",
    "one_guess",
    "pay_table",
    "prepare_base",
    "speed_chart",
    "write_json",
]

LENGTH = 512
TEXTS = {
    "copying": "Repeat this text word for word: The old lighthouse keeper climbed the narrow "
    "stairs every evening, lit the lamp, and wrote the weather into his book. The narrow stairs "
    "were cold, the lamp was warm, and the book was almost full.",
    "counting": "Continue the list: 1. one apple 2. two apples 3. three apples 4. four apples",
    "chat": "Why is the sky blue? Explain it to a child.",
}


@dataclass(frozen=True)
class Runs:
    """One load, served several times without and with guesses, in turns.

    Attributes:
        plain: the runs without guesses.
        guessed: the runs with guesses.
    """

    plain: list[Timeline]
    guessed: list[Timeline]

    @property
    def same(self) -> bool:
        """Whether all runs gave the same tokens."""
        return all(run.answers == self.plain[0].answers for run in [*self.plain, *self.guessed])

    @property
    def measured(self) -> float:
        """How many times faster decoding was with guesses."""
        return fastest(self.plain) / fastest(self.guessed)

    @property
    def guesses(self) -> float:
        """Guesses per decoding step of a sequence."""
        return self._counts()[0] / max(1, self._steps())

    @property
    def share(self) -> float:
        """The share of right guesses."""
        guessed, right = self._counts()
        return right / max(1, guessed)

    @property
    def tokens_per_step(self) -> float:
        return 1 + self.share * self.guesses

    def _counts(self) -> tuple[int, int]:
        found = [sequence.guessing for sequence in self.guessed[0].sequences.values()]
        return sum(g.guessed for g in found), sum(g.right for g in found)

    def _steps(self) -> int:
        sequences = self.guessed[0].sequences
        chunks = [chunk for moment in self.guessed[0].moments for chunk in moment.step.chunks]
        return sum(c.start >= len(sequences[c.request].request.prompt) for c in chunks)


class Lesson:
    """Serves texts in 32-bit numbers, with any proposer.

    Args:
        base: the checkpoint.
        tokens: of each answer.
        repeats: how often each load is served.
    """

    def __init__(self, base: Path, tokens: int, repeats: int) -> None:
        self.base, self.tokens, self.repeats = base, tokens, repeats
        self.options = ModelOptions(str(base), "float32", places=4, length=LENGTH)
        self.runner = ModelManager().runner(self.options)
        self.text = Text(base, LENGTH)
        self.step_ms(1)  # warms up

    def prompt(self, kind: str) -> tuple[int, ...]:
        return tuple(self.text.chat([{"role": "user", "content": TEXTS[kind]}]))

    def run(
        self,
        kind: str,
        proposer: Proposer,
        runner: ModelRunner | None = None,
        together: int = 1,
    ) -> Runs:
        """Serves one kind of text, in turns without and with guesses.

        Args:
            kind: a key of `TEXTS`.
            proposer: guesses.
            runner: the model with its draft model; None: the model alone.
            together: how many requests run at once.
        """
        runs = Runs([], [])
        for _ in range(self.repeats):
            runs.plain.append(self._serve(kind, NoProposer(), self.runner, together))
            runs.guessed.append(self._serve(kind, proposer, runner or self.runner, together))
        return runs

    def step_ms(self, tokens: int, sequences: int = 1, repeats: int = 7) -> float:
        """Measures a step of so many tokens of each sequence, behind 128 others, in ms."""
        return step_ms(self.runner, tokens, sequences, repeats)

    def costs(self, guesses: int, sequences: int = 1) -> float:
        """Measures what checking one guess costs, in plain steps."""
        plain, checked = (self.step_ms(n, sequences) for n in (1, 1 + guesses))
        return max(0.0, checked / plain - 1) / guesses

    def _serve(self, kind: str, proposer: Proposer, runner: ModelRunner, together: int) -> Timeline:
        sampling = SamplingParameters(max_tokens=self.tokens, ignore_eos=True)
        prompt = self.prompt(kind)
        requests = [Request(str(n), prompt, sampling) for n in range(together)]
        memory = self.options.memory()
        scheduler = Scheduler(Continuous(), memory, self.options.places, proposer=proposer)
        return replay(scheduler, InProcess(runner), requests)


def step_ms(runner: ModelRunner, tokens: int, sequences: int = 1, repeats: int = 7) -> float:
    """Measures a step, in milliseconds: the median of some."""
    chunks = [
        Chunk(str(n), n, 128, tuple(range(100, 100 + tokens)), True, guesses=tokens - 1)
        for n in range(sequences)
    ]
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        runner.run(Step(tuple(chunks)))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3


def fastest(runs: Sequence[Timeline]) -> float:
    """Returns the shortest time from the first to the last token, in seconds."""
    return min(run.moments[-1].ended - run.moments[0].ended for run in runs)


def draft_of_layers(lesson: Lesson, layers: int, k: int) -> tuple[Draft, DraftRunner]:
    """Makes a draft of the first layers of the model itself, with its last norm and head."""
    runner = ModelManager().runner(replace(lesson.options, places=1))
    model = runner.model
    model.layers = model.layers[:layers]
    return draft(lesson, runner, k)


def draft_of_precision(lesson: Lesson, precision: str, k: int) -> tuple[Draft, DraftRunner]:
    """Makes a draft of the same model in another precision."""
    options = replace(lesson.options, precision=precision, places=1)
    return draft(lesson, ModelManager().runner(options), k)


def draft(lesson: Lesson, runner: ModelRunner, k: int) -> tuple[Draft, DraftRunner]:
    """Measures what a guess of this runner costs: to make it, and to check it."""
    step_ms(runner, 1)
    cost = step_ms(runner, 1) / lesson.step_ms(1) + lesson.costs(k)
    memory = replace(lesson.options, places=1).memory(prefixes=True)
    return Draft(k, cost), DraftRunner(lesson.runner, runner, memory, places=1)


def pay_table(runs: dict[str, Runs], costs: dict[str, float]) -> pd.DataFrame:
    """Compares the predicted with the measured speed-up."""
    rows = {
        name: {
            "guesses a step": round(run.guesses, 2),
            "right, %": round(run.share * 100),
            "tokens a step": round(run.tokens_per_step, 2),
            "cost of a guess": round(costs[name], 2),
            "predicted": round(speed_up(run.share, run.guesses, costs[name]), 2),
            "measured": round(run.measured, 2),
        }
        for name, run in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def cost_chart(ms: dict[int, float]) -> None:
    """Draws the milliseconds of a step by its number of tokens."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.8))
        axis.plot(list(ms), list(ms.values()), "o-", color=PALETTE[0], label="one step")
        proportional = [ms[1] * tokens for tokens in ms]
        axis.plot(list(ms), proportional, "--", color=PALETTE[3], label="one step per token")
        axis.set(
            xlabel="Tokens of one sequence in a step", ylabel="ms", ylim=(0, max(ms.values()) * 3)
        )
        axis.legend()
        figure.tight_layout()
        plt.show()


def speed_chart(table: pd.DataFrame) -> None:
    """Draws the predicted and the measured speed-up of each row."""
    places = np.arange(len(table))
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 0.55 * len(table) + 1.1))
        for shift, column, colour in (
            (-0.18, "predicted", "#c3c9d1"),
            (0.18, "measured", PALETTE[0]),
        ):
            axis.barh(places + shift, table[column], height=0.34, color=colour, label=column)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_yticks(places, table.index)
        axis.set(xlabel="Times faster than without guesses")
        axis.invert_yaxis()
        axis.grid(False, axis="y")
        axis.legend()
        figure.tight_layout()
        plt.show()


def one_guess(
    target: np.ndarray,
    draft: np.ndarray,
    accept: Callable[[float, float, float], bool],
    count: int = 20_000,
) -> tuple[np.ndarray, float]:
    """Draws tokens by guesses of a draft.

    Args:
        target: the model's probabilities.
        draft: the draft's probabilities.
        accept: decides by target's and draft's probability of the guess, and a random number.

    Returns:
        The share of each token, and the share of accepted guesses.
    """
    random = np.random.default_rng(0)
    rest = np.maximum(target - draft, 0)
    rest = rest / rest.sum() if rest.sum() else target
    guesses = random.choice(len(draft), count, p=draft)
    numbers = random.random(count)
    pairs = zip(guesses, numbers, strict=True)
    right = np.array([accept(target[g], draft[g], number) for g, number in pairs])
    tokens = np.where(right, guesses, random.choice(len(target), count, p=rest))
    return np.bincount(tokens, minlength=len(target)) / count, float(right.mean())


def acceptance_chart(target: np.ndarray, drawn: dict[str, np.ndarray]) -> None:
    """Draws the model's probabilities beside the shares of the drawn tokens."""
    bars = {"the model alone": target, **drawn}
    width = 0.8 / len(bars)
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.6))
        for place, (name, shares) in enumerate(bars.items()):
            left = np.arange(len(target)) + place * width
            colour = "#9aa1ab" if not place else PALETTE[place - 1]
            axis.bar(left, shares, width=width, color=colour, label=name)
        axis.set(xlabel="Token", ylabel="Share", xticks=range(len(target)))
        axis.legend()
        figure.tight_layout()
        plt.show()
