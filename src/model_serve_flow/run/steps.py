"""Defines the eight steps: the environment of each, its inputs and its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import OPTIONAL_SECTIONS, FlowConfig
from model_serve_flow.system.checkout import MODULES, checkout
from model_serve_flow.system.settings import settings


@dataclass(frozen=True)
class Step:
    """One step: its environment, the profile sections it depends on, its inputs and outputs.

    Paths are relative to the workspace. `{candidate}` stands for each candidate. A path without a
    suffix is a folder. A profile without a section that the step `needs` does not have this step.
    """

    module: str
    environment: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def number(self) -> str:
        return self.module.partition("_")[0]

    @property
    def notebook(self) -> str:
        return f"{self.module}.ipynb"


BASE, CANDIDATE, DATA = "models/base", "models/{candidate}", "data"
ACCURACY, PERFORMANCE = "results/base/accuracy.json", "results/base/performance.json"
IN_BLOCKS = "results/base/performance_in_blocks.json"
DISTRIBUTION = "results/base/distribution.json"
AGAIN = ("results/base/accuracy_again.json", "results/base/distribution_again.json")
CANDIDATE_ACCURACY, CANDIDATE_PERFORMANCE = (
    "results/{candidate}/accuracy.json",
    "results/{candidate}/performance.json",
)
CANDIDATE_DISTRIBUTION = "results/{candidate}/distribution.json"
RESULTS = (
    ACCURACY,
    DISTRIBUTION,
    *AGAIN,
    PERFORMANCE,
    CANDIDATE_ACCURACY,
    CANDIDATE_DISTRIBUTION,
    CANDIDATE_PERFORMANCE,
    IN_BLOCKS,
)
COMPRESSION = "results/{candidate}/compression.json"
SHIP_RECORD = "report/ship-record.json"
SERVED = ("device", "seed", "engine")

STEPS: tuple[Step, ...] = (
    Step(
        "00_Setup",
        "notebook",
        ("device", "seed", "model", "accuracy", "calibration"),
        (),
        (BASE, DATA),
    ),
    Step(
        "01_Base_Accuracy",
        "serve",
        (*SERVED, "accuracy"),
        (BASE, DATA),
        (ACCURACY, DISTRIBUTION, *AGAIN),
        ("accuracy",),
    ),
    Step(
        "02_Base_Performance",
        "serve",
        (*SERVED, "performance"),
        (BASE,),
        (PERFORMANCE,),
        ("performance",),
    ),
    Step(
        "03_Compress",
        "compress",
        ("device", "seed", "candidates", "calibration"),
        (BASE, DATA, ACCURACY),
        (CANDIDATE, COMPRESSION),
        ("candidates",),
    ),
    Step(
        "04_Compressed_Accuracy",
        "serve",
        # `verdict` decides when no more items are asked
        (*SERVED, "candidates", "accuracy", "verdict"),
        (CANDIDATE, DATA, ACCURACY),
        (CANDIDATE_ACCURACY, CANDIDATE_DISTRIBUTION),
        ("candidates", "accuracy"),
    ),
    Step(
        "05_Compressed_Performance",
        "serve",
        (*SERVED, "candidates", "performance"),
        (BASE, CANDIDATE),
        (CANDIDATE_PERFORMANCE, IN_BLOCKS),
        ("candidates", "performance"),
    ),
    Step(
        "06_Comparison",
        "notebook",
        # The ship record binds the verdict to the whole profile except `deploy`.
        (
            *(name for name in FlowConfig.model_fields if name != "deploy"),
            "deploy.hourly_price_usd",
        ),
        (*RESULTS, COMPRESSION),
        ("report/comparison.json", "report/report.md", "report/report.html", SHIP_RECORD),
        ("candidates",),
    ),
    Step(
        "07_Deploy",
        "serve",
        (*SERVED, "candidates", "deploy"),
        ("report/comparison.json", BASE, CANDIDATE),
        ("deploy",),
        ("candidates", "deploy", "engine.kind: vllm"),
    ),
)


def steps_of(config: FlowConfig) -> tuple[Step, ...]:
    """Returns the steps of a profile: those whose sections it has.

    07 writes manifests of a vLLM server, so a profile with another engine has no 07.
    """
    return tuple(step for step in STEPS if not lacking(step, config))


def lacking(step: Step, config: FlowConfig) -> list[str]:
    """Lists what a step needs of a profile and the profile does not have."""
    found = {name: config.has(name) for name in OPTIONAL_SECTIONS}
    found["engine.kind: vllm"] = config.engine.kind == "vllm"
    return [name for name in step.needs if not found[name]]


def select(
    only: Sequence[str] = (), start: str | None = None, steps: Sequence[Step] = STEPS
) -> list[Step]:
    """Returns the steps to run, given by number or name.

    Raises:
        FlowError: names an unknown step, or a step that the profile does not have.
    """
    known = {key: step for step in steps for key in (step.number, step.module)}
    names = f"Modules: {', '.join(step.module for step in steps)}."
    for name in [*only, *([start] if start else [])]:
        if name not in known:
            step = next((step for step in STEPS if name in (step.number, step.module)), None)
            if step is not None:
                needs = " and ".join(step.needs)
                raise FlowError(f"This profile has no {step.module}: it needs {needs}.", names)
            raise FlowError(f"Unknown module {name!r}.", names)
    first = steps.index(known[start]) if start else 0
    chosen = [known[name] for name in only] or list(steps)
    return [step for index, step in enumerate(steps) if index >= first and step in chosen]


def module_folder(step: Step) -> Path:
    """Returns the folder of the step's notebook and utils.py.

    It is in `MODEL_SERVE_FLOW_MODULES`, by default the example of this checkout.
    """
    return (settings().modules or checkout() / MODULES) / step.module


def expand(paths: Sequence[str], config: FlowConfig) -> list[str]:
    """Fills in `{candidate}`, and leaves out files that the profile does not produce.

    - A ready-made checkpoint has no folder here; its compression.json has the digest.
    - Tasks and texts of the hub have no folder; lm-eval and datasets fetch them.
    - The second measurement, the blocks and the distributions are optional.
    - A profile without a section has no results of it.
    """
    made = [candidate.name for candidate in config.candidates if candidate.source is None]
    every = [candidate.name for candidate in config.candidates]
    packaged = config.accuracy.packaged or config.calibration.packaged
    expanded = []
    for path in paths:
        if (path == DATA and not packaged) or not _measured(path, config):
            continue
        names = made if path == CANDIDATE else every
        expanded += (
            [path.format(candidate=name) for name in names] if "{candidate}" in path else [path]
        )
    return expanded


def _measured(path: str, config: FlowConfig) -> bool:
    """Checks whether the profile asks for the measurement in this file."""
    distribution = "/distribution" in path
    if "/accuracy" in path or distribution:
        section = "accuracy"
    elif "/performance" in path:
        section = "performance"
    else:
        return True
    return config.has(section) and not (
        (path == IN_BLOCKS and config.performance.blocks == 1)
        or (distribution and config.accuracy.distribution is None)
        or (path in AGAIN and config.accuracy.again is None)
    )


def needs_hub(config: FlowConfig) -> bool:
    """Checks whether any part of the profile comes from the hub."""
    packaged = (
        set(type(config.accuracy.packaged).model_fields) if config.accuracy.packaged else set()
    )
    sources = [config.model.source, *(candidate.source for candidate in config.candidates)]
    remote = [
        source
        for source in sources
        if source is not None and not Path(source).expanduser().is_dir()
    ]
    distribution = config.accuracy.distribution
    texts = config.calibration.dataset or (distribution is not None and distribution.dataset)
    return bool(remote or texts or set(config.accuracy.tasks) - packaged)
