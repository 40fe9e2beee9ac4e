"""Where a step is computed: `Executor` is the interface, `InProcess` the simplest one."""

import time
from typing import Protocol

from serving_from_scratch.engine.messages import ModelFacts, Outcome, Step, StepResult


class Runner(Protocol):
    """Computes steps: `serving_from_scratch.model.runner.ModelRunner`."""

    facts: ModelFacts

    def run(self, step: Step) -> tuple[Outcome, ...]: ...


class Executor(Protocol):
    """Computes one step after the other, somewhere."""

    facts: ModelFacts

    def step(self, step: Step) -> StepResult: ...

    def close(self) -> None: ...


class InProcess:
    """Computes steps in the caller's own process: for notebooks and tests."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.facts = runner.facts

    def step(self, step: Step) -> StepResult:
        started = time.perf_counter()
        outcomes = self._runner.run(step)
        return StepResult(outcomes, time.perf_counter() - started)

    def close(self) -> None:
        """Has nothing to end."""
