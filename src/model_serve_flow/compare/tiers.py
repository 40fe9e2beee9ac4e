"""Says which tasks must be measured, which decide, and which only advise.

Does not depend on the profile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from model_serve_flow.flow.results.compared import Decision, Tier

Found = TypeVar("Found")

WITHHELD = "SHIP is withheld."


@dataclass(frozen=True)
class Tiers:
    """The tier of every task. A task that is in neither list is deciding.

    - required: decides, and must be measured and able to decide. Otherwise SHIP is withheld.
    - deciding: decides where it can. A task that cannot decide is named and does not count.
    - advisory: is compared and shown, and never decides.

    Attributes:
        required, advisory: names of tasks.

    Raises:
        ValueError: a task is in both lists.
    """

    required: tuple[str, ...] = ()
    advisory: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if both := sorted(set(self.required) & set(self.advisory)):
            raise ValueError(f"{both[0]} is named both as required and as advisory: choose one")

    def of(self, task: str) -> Tier:
        """Returns the tier of a task."""
        if task in self.required:
            return "required"
        return "advisory" if task in self.advisory else "deciding"

    def counting(self, tasks: Mapping[str, Found]) -> dict[str, Found]:
        """Keeps the tasks that count in the verdict: all but the advisory tasks."""
        return {task: found for task, found in tasks.items() if task not in self.advisory}

    def blockers(self, measured: Collection[str], able: Collection[str]) -> list[str]:
        """Says for each required task that does not decide why SHIP is withheld.

        Args:
            measured: the tasks that were measured on both sides.
            able: the tasks among them that can decide.
        """
        sentences = []
        for task in self.required:
            if task not in measured:
                sentences.append(f"{task} is required, but it was not measured: {WITHHELD}")
            elif task not in able:
                sentences.append(f"{task} is required, but it cannot decide: {WITHHELD}")
        return sentences


EVERY_TASK_DECIDES = Tiers()


def withheld(verdict: Decision, blockers: Collection[str]) -> Decision:
    """Turns SHIP into INCONCLUSIVE if there is a blocker; any other verdict is kept."""
    return "INCONCLUSIVE" if verdict == "SHIP" and blockers else verdict
