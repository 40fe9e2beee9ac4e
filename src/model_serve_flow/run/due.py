"""Decides which steps a run would do and why; `plan` and the runner ask the same function."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, Literal

from model_serve_flow.deploy.ship_record import record_digest
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import PerformanceResult
from model_serve_flow.run.code_digest import code_digest
from model_serve_flow.run.steps import SHIP_RECORD, Step, expand, module_folder
from model_serve_flow.system import environments
from model_serve_flow.system.digests import digest_once, file_digest
from model_serve_flow.system.files import read_json, read_result

PERFORMANCE_RESULT = re.compile(r"results/([^/]+)/performance(?:_in_blocks)?\.json")


@dataclass(frozen=True)
class Decision:
    """What a run does with a step, and why.

    Attributes:
        action: "skip", "run", "measure again" (only what is not measured), or "depends": the step
            is skipped if the earlier steps write the files that it was made from.
        why: the reason.
    """

    action: Literal["skip", "run", "measure again", "depends"]
    why: str


class Due:
    """What the workspace, the profile, the code and this machine say about each step."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow

    def plan(self, steps: Sequence[Step], force: bool = False) -> list[tuple[Step, Decision]]:
        """Decides about steps that run one after the other, before any of them ran.

        Raises:
            FlowError: an input is missing, and no earlier step of these writes it.
        """
        anew: dict[str, str] = {}
        planned = []
        for step in steps:
            decision = self.decide(step, force, anew)
            planned.append((step, decision))
            if decision.action != "skip":
                anew |= dict.fromkeys(expand(step.outputs, self.flow.config), step.module)
        return planned

    def decide(
        self, step: Step, force: bool = False, anew: Mapping[str, str] | None = None
    ) -> Decision:
        """Decides whether a step runs.

        Args:
            step: the step.
            force: runs a finished step again.
            anew: files that do not exist yet or are written again before -> the step that does it.

        Raises:
            FlowError: an input is missing, and no earlier step writes it.
        """
        inputs, earlier = expand(step.inputs, self.flow.config), anew or {}
        self._require([path for path in inputs if path not in earlier], step)
        done = self.steps_done().get(step.module)
        if force:
            return Decision("run", "it is asked for by force")
        if done is None:
            return Decision("run", "it has not finished")
        outputs = {path: self.digest(path) for path in expand(step.outputs, self.flow.config)}
        if changed := [path for path in outputs if outputs[path] != done["outputs"].get(path)]:
            return Decision("run", f"missing or changed since: {', '.join(changed)}")
        makers = sorted({earlier[path] for path in inputs if path in earlier})
        if makers:
            return Decision("depends", f"on what {' and '.join(makers)} will write")
        if done["outputs"] != outputs or done["fingerprint"] != self.fingerprint(step):
            return Decision("run", "its inputs, profile, tools, code or machine changed")
        if unmeasured := self.unmeasured(step):
            return Decision("measure again", f"what is not measured: {'; '.join(unmeasured)}")
        return Decision("skip", "its inputs are unchanged")

    def is_current(self, step: Step) -> bool:
        """Checks whether the step is done; false if an input is missing."""
        inputs = expand(step.inputs, self.flow.config)
        return all(map(self.digest, inputs)) and self.decide(step).action in (
            "skip",
            "measure again",
        )

    def fingerprint(self, step: Step) -> str:
        """Computes the SHA-256 of everything that the step's result depends on."""
        config = self.flow.config.model_dump(mode="json")
        folder = module_folder(step)
        facts = {
            "profile": {
                section: functools.reduce(getitem, section.split("."), config)
                for section in step.sections
                if section.partition(".")[0] in config
            },
            "sources": {name: file_digest(folder / name) for name in (step.notebook, "utils.py")},
            "locks": [
                file_digest(path)
                for path in environments.lock_paths(step.environment, self.flow.config.device)
            ],
            "library": code_digest(folder, step.notebook),
            "machine": self.machine if step.environment == "serve" else None,
            "inputs": {path: self.digest(path) for path in expand(step.inputs, self.flow.config)},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def machine(self) -> dict[str, Any]:
        """The parts of this machine that decide how a model is served.

        Measurements of two machines are not compared.
        """
        from model_serve_flow.system.hardware import inspect_machine

        parts = {"architecture", "cpu", "cores", "cpu_features", "gpus"}
        return inspect_machine(self.flow.workspace.root).model_dump(mode="json", include=parts)

    def unmeasured(self, step: Step) -> list[str]:
        """Lists what the finished step could not measure; the next run measures it again."""
        outputs = expand(step.outputs, self.flow.config)
        models = {path: found[1] for path in outputs if (found := PERFORMANCE_RESULT.match(path))}
        results = {
            path: read_result(self.flow.workspace.root / path, PerformanceResult) for path in models
        }
        return [
            f"{models[path]}, {what}"
            for path, result in results.items()
            for what in result.unmeasured()
        ]

    def digest(self, path: str) -> str | None:
        """Digests a file or folder of the workspace; None if it is missing or an empty folder."""
        place = self.flow.workspace.root / path
        return record_digest(place) if path == SHIP_RECORD else digest_once(place)

    def steps_done(self) -> dict[str, Any]:
        """Reads the manifest's section `steps`."""
        manifest = self.flow.workspace.manifest
        return read_json(manifest).get("steps", {}) if manifest.is_file() else {}

    def _require(self, inputs: Sequence[str], step: Step) -> None:
        for path in inputs:
            if self.digest(path) is None:
                missing = self.flow.workspace.root / path
                raise FlowError(
                    f"{step.module} needs {missing}, which is missing.",
                    f"Leave out --only and --from. {RERUN}",
                )
