"""Prints which data lm-eval's tasks load; runs in the environment that has lm-eval.

Use: `python -m model_serve_flow.setup.lm_eval_data arc_easy`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.setup.offline import HUB_ID

NLTK_RESOURCE = re.compile(r"nltk\.data\.find\(\"([^\"]+)\"\)")


def task_needs(tasks: Iterable[str]) -> list[tuple[str, str, str | None]]:
    """Lists what lm-eval's tasks load, from their definitions; fetches nothing.

    Returns:
        (kind, name, part) of each dataset and NLTK resource.

    Raises:
        FlowError: a task is unknown, or does not load a repository of the hub.
    """
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    needs: dict[tuple[str, str, str | None], None] = {}
    for definition, folder in (leaf for task in tasks for leaf in _leaves(task, {}, index)):
        path = str(definition.get("dataset_path"))
        if (
            {"class", "custom_dataset"} & definition.keys()
            or "/" not in path
            or not HUB_ID.fullmatch(path)
        ):
            raise FlowError(
                f"Task {definition.get('task')} does not load its data from a repository of the "
                "hub."
            )
        needs["dataset", path, definition.get("dataset_name")] = None
        for script in sorted(folder.glob("*.py")):
            for resource in NLTK_RESOURCE.findall(script.read_text(encoding="utf-8")):
                needs["nltk", resource, None] = None
    return list(needs)


def _leaves(
    name: str, changes: dict[str, Any], index: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yields definition and folder of each task behind a name.

    The name may be a task, a tag, or a group, whose members may change a task's settings.
    """
    if name not in index:
        raise FlowError(f"Unknown task {name}.")
    entry = index[name]
    if entry.cfg is None:  # a tag
        members = sorted(entry.tags)
    elif isinstance(entry.cfg.get("task"), list):  # a group
        members = entry.cfg["task"]
    else:
        members = []
        yield {**entry.cfg, **changes}, entry.yaml_path.parent
    for member in members:
        own = {"task": member} if isinstance(member, str) else dict(member)
        child = own.pop("group", None) or own.pop("task")
        yield from _leaves(child, {**changes, **own}, index)


if __name__ == "__main__":
    try:
        print(json.dumps(task_needs(sys.argv[1:])))
    except FlowError as failure:
        sys.exit(failure.problem)
