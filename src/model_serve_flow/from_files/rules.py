"""Holds the user's rules of a comparison: margins, and which tasks decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from model_serve_flow.compare.differences import Differences, deciding
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.errors import BadInput
from model_serve_flow.flow.profile import Verdict

AVERAGE_SHARE = 0.5  # of the tasks' margins: an average varies less than its tasks
TASK_MARGINS = ("task_margin_points", "perplexity_margin_percent")  # a task uses one of them


@dataclass(frozen=True)
class Rules:
    """Margins and tiers.

    Attributes:
        margins: the accepted drop of a task in points, the accepted rise of a perplexity in
            percent, and the share of the base's score above guessing that must be kept.
        average: the accepted drop of the average in points. None: half of the tasks' mean margin,
            or the margin of the task if only one decides.
        task_margins: task -> margin in its own unit, instead of the general margin.
    """

    margins: Verdict = field(default_factory=Verdict)
    average: float | None = None
    task_margins: Mapping[str, float] = field(default_factory=dict)
    tiers: Tiers = field(default_factory=Tiers)
    seed: int = 0

    def of_task(self, task: str) -> Verdict:
        """Returns the margins for the task, whatever its unit."""
        if task not in self.task_margins:
            return self.margins
        own = dict.fromkeys(TASK_MARGINS, self.task_margins[task])
        return self.margins.model_copy(update=own)

    def of_average(self, differences: Differences) -> Verdict:
        """Returns the margins for the average of the tasks that decide."""
        margins = [difference.margin for difference in deciding(differences).values()]
        if self.average is None and not margins:
            return self.margins
        share = 1.0 if len(margins) == 1 else AVERAGE_SHARE
        average = share * fmean(margins) if self.average is None else self.average
        return self.margins.model_copy(update={"suite_margin_points": average})

    def require_known(self, tasks: Collection[str]) -> None:
        """Refuses an option that names a task of neither side; a required task may be missing.

        Raises:
            BadInput: names the option and the task.
        """
        known = {*tasks, *self.tiers.required}
        options = {"--advisory": self.tiers.advisory, "--task-margin": self.task_margins}
        for option, names in options.items():
            if unknown := sorted(set(names) - known):
                problem = f"{option}: no side has the task {unknown[0]}."
                raise BadInput(problem, f"The tasks are {', '.join(sorted(tasks))}.")
