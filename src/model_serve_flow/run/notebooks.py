"""Executes notebooks one after the other, and ends every process of a notebook before the next."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_serve_flow.flow.load import profiles_folder
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.run.progress import executed_cells
from model_serve_flow.run.steps import Step, module_folder, needs_hub
from model_serve_flow.setup import offline
from model_serve_flow.system import environments, interrupts, live, processes
from model_serve_flow.system.environments import Environment
from model_serve_flow.system.live import Live
from model_serve_flow.system.processes import RUN_VARIABLE
from model_serve_flow.system.variables import variable
from model_serve_flow.system.worker import LEFTOVER_SECONDS, Ended, JobProcess

POLL_SECONDS = 0.5
QUIET = {
    "PYTHONUNBUFFERED": "1",
    # Each move of a progress bar would become a line of the executed notebook.
    "TQDM_DISABLE": "1",
}


class Notebooks:
    """Executes the notebooks of one run with one `notebook_driver`, started with the first."""

    def __init__(self, workspace: Workspace, config: FlowConfig) -> None:
        self._workspace, self._config = workspace, config
        self._driver: JobProcess | None = None

    def execute(
        self,
        step: Step,
        environment: Environment,
        python: Path,
        parameters: dict[str, Any],
        show: Callable[[int, int, Live | None], None],
    ) -> tuple[int, Path, Path]:
        """Executes the step's notebook in the kernel of its environment.

        Every process that the notebook started is ended before this returns or raises. The driver
        is ended too unless the notebook succeeded.

        Args:
            python: the interpreter that has papermill.
            parameters: values of the notebook's parameters cell.
            show: called while the notebook runs, with the number of the current cell, the number of
                cells, and the long work in progress.

        Returns:
            Exit status (0: every cell succeeded), the executed notebook and its log.
        """
        output = self._workspace.notebooks / f"{step.module}.ipynb"
        log = self._workspace.logs / f"{step.module}.log"
        for path in (output, log):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        driver = self._driver = self._driver or self._start(python)
        with _whole(output) as running, live.fresh(self._live):
            job = {
                "arguments": papermill_arguments(step, environment, parameters, running),
                "log": str(log),
            }
            status = self._do(
                driver, job, lambda: show(*executed_cells(running), live.read(self._live))
            )
        return status, output, log if log.is_file() else driver.log

    @property
    def _live(self) -> Path:
        """The file in which the notebook's process reports its progress."""
        return self._workspace.root / ".live.json"

    def _start(self, python: Path) -> JobProcess:
        command = (str(python), "-m", "model_serve_flow.run.notebook_driver")
        return JobProcess(
            command, self._workspace.logs / "notebooks.log", self._variables(), RUN_VARIABLE
        )

    def _do(self, driver: JobProcess, job: dict[str, Any], tick: Callable[[], None]) -> int:
        succeeded = False
        try:
            succeeded = driver.do(job, POLL_SECONDS, tick)
            return 0 if succeeded else 1
        except Ended as ended:
            return ended.status
        finally:
            with interrupts.ignored():
                if succeeded:
                    processes.end(driver.started, LEFTOVER_SECONDS)
                else:
                    driver.stop()

    def stop(self) -> None:
        """Ends the driver and all processes of the run."""
        if self._driver is not None:
            with interrupts.ignored():
                self._driver.stop()

    def _variables(self) -> dict[str, str]:
        """Returns the variables of all notebooks: no telemetry, kernels, no hub unless needed."""
        variables = {**os.environ, **environments.process_variables(), **QUIET}
        variables["JUPYTER_PATH"] = environments.jupyter_path()
        variables[variable("profiles")] = str(profiles_folder().resolve())
        variables[live.VARIABLE] = str(self._live)
        if not needs_hub(self._config):
            variables |= offline.HUB_OFFLINE
        variables |= {
            RUN_VARIABLE: f"{_mark(self._workspace)}{uuid.uuid4().hex}",
            **processes.KEEP_READABLE,
        }
        return variables | offline.variables()


def papermill_arguments(
    step: Step, environment: Environment, parameters: dict[str, Any], output: Path
) -> dict[str, Any]:
    """Returns the arguments of `papermill.execute_notebook` for the step's notebook."""
    return {
        "input_path": str(module_folder(step) / step.notebook),
        "output_path": str(output),
        "parameters": parameters,
        "kernel_name": environment.kernel,
        "cwd": str(module_folder(step)),
    }


def end_leftovers(workspace: Workspace) -> int:
    """Ends the processes of an earlier run of the workspace that was killed.

    Returns:
        The number of these processes.
    """
    mark = _mark(workspace)
    return processes.end(
        lambda: processes.marked(RUN_VARIABLE, lambda value: value.startswith(mark)),
        LEFTOVER_SECONDS,
    )


def _mark(workspace: Workspace) -> str:
    return f"{workspace.root}#"


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """Gives papermill a path to write to after each cell, and moves it to `output` at the end.

    The file is moved only if it is complete.
    """
    running = output.with_name(f".{output.stem}.running.ipynb")
    running.unlink(missing_ok=True)
    try:
        yield running
    finally:
        if any(executed_cells(running)):
            running.replace(output)
        running.unlink(missing_ok=True)  # cut off in the middle of a write
