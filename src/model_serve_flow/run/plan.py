"""Describes what a run would do: every step, its environment, its command lines and its needs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.measure.repeats import repeated_tasks, seeds
from model_serve_flow.run.due import Due
from model_serve_flow.run.steps import Step, expand, module_folder, select, steps_of
from model_serve_flow.setup.device_checks import scheme_lines
from model_serve_flow.system import environments
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.environments import Environment

PORT = 8000  # in place of the free port that is chosen when a server starts


def plan(
    flow: Flow, only: Sequence[str] = (), start: str | None = None, force: bool = False
) -> str:
    """Returns the whole plan as text; works on machines that cannot run the profile, too.

    Raises:
        FlowError: `only` or `start` names no step, or leaves out a step whose files are missing.
    """
    config, workspace = flow.config, flow.workspace
    lines = [
        f"{config.name}: {config.description}",
        f"Reference machine: {config.reference_machine}",
        "",
    ]
    chosen = select(only, start, steps_of(config))
    for step, decision in Due(flow).plan(chosen, force):
        lock = environments.lock_path(step.environment, config.device).relative_to(checkout())
        lines += [f"{step.module}  (environment {step.environment}, lock {lock})"]
        lines += [f"    {decision.action}: {decision.why}"]
        lines += [f"    reads   {path}" for path in expand(step.inputs, config)]
        lines += [f"    writes  {path}" for path in expand(step.outputs, config)]
        lines += [f"    $ {shlex.join(command)}" for command in commands(step, flow)]
    kernels = [f"kernels of vLLM for {line}" for line in scheme_lines(config)]
    return "\n".join([*lines, "", *kernels, "", *needs(flow), f"Artifacts: {workspace.root}"])


def commands(step: Step, flow: Flow) -> list[list[str]]:
    """Returns the command lines of a step: papermill, and what its notebook starts for each model.

    The flow calls papermill, lm-eval and llm-compressor as libraries. For papermill and lm-eval,
    the lines are commands that do the same. The lm-eval line asks every choice separately: same
    scores, more tokens. The base's second measurement has no line. Tasks that are asked several
    times have one more line, with their first seed.
    """
    config, workspace = flow.config, flow.workspace
    environment = environments.environment(step.environment)
    notebook = workspace.notebooks / f"{step.module}.ipynb"
    python = environments.environment("notebook").python
    lines = [papermill_command(step, environment, notebook, python)]
    names = (
        ["base"]
        if step.module in ("01_Base_Accuracy", "02_Base_Performance")
        else [c.name for c in config.candidates]
    )
    if step.module == "05_Compressed_Performance" and config.performance.blocks > 1:
        names.insert(0, "base")
    if step.module == "07_Deploy":
        names = [config.deploy.candidate or "CHOSEN"]
    if step.environment == "serve":
        for name in names:
            lines += _measurement(step, config, workspace.model(name), name, environment.python)
    return lines


def papermill_command(
    step: Step, environment: Environment, output: Path, python: Path
) -> list[str]:
    """Returns the command line that executes the step's notebook in its environment's kernel."""
    return [
        *(
            str(python),
            "-m",
            "papermill",
            "--no-progress-bar",
            "--log-output",
            "-k",
            environment.kernel,
        ),
        *("--cwd", str(module_folder(step)), "-f", "parameters.yaml"),
        *(str(module_folder(step) / step.notebook), str(output)),
    ]


def _measurement(
    step: Step, config: FlowConfig, folder: Path, name: str, python: Path
) -> list[list[str]]:
    from model_serve_flow.measure.guidellm.commands import load_command, search_command
    from model_serve_flow.serve.engine import ACCURACY, DEPLOY, PERFORMANCE
    from model_serve_flow.serve.engines import engine_of

    scores = step.module.endswith("Accuracy")
    purpose = ACCURACY if scores else DEPLOY if step.module == "07_Deploy" else PERFORMANCE
    lines = [_in(python, engine_of(config).command(folder, name, PORT, purpose))]
    if scores:
        lines.append(lm_eval_command(config, folder, name, python))
        if config.accuracy.repeats is not None:
            lines.append(lm_eval_command(config, folder, name, python, seeds(config)[0]))
    if step.module.endswith("Performance"):
        where, raw = (f"http://127.0.0.1:{PORT}", name, str(folder)), f"results/{name}/raw"
        lines.append(_in(python, load_command(config, *where, f"{raw}/guidellm-1.json")))
        if (slo := config.performance.slo) is not None:
            lines.append(_in(python, search_command(config, slo, *where, f"{raw}/goodput.json")))
    return lines


def lm_eval_command(
    config: FlowConfig, folder: Path, name: str, python: Path, seed: int | None = None
) -> list[str]:
    """Returns the lm-eval command line that measures what the notebook measures.

    Args:
        seed: of the sampled answers; without it, the line covers the other tasks.
    """
    accuracy = config.accuracy
    several = repeated_tasks(config, accuracy.tasks)
    tasks = [task for task in accuracy.tasks if task not in several] if seed is None else several
    endpoint = f"model={name},base_url=http://127.0.0.1:{PORT}/v1/completions,tokenizer={folder},tokenized_requests=True"
    endpoint += f",num_concurrent={accuracy.concurrency},max_length={config.engine.max_model_len}"
    endpoint += "" if seed is None else f",seed={seed}"
    line = [str(python), "-m", "lm_eval", "--model", "local-completions", "--model_args", endpoint]
    line += [
        "--tasks",
        ",".join(tasks),
        "--batch_size",
        str(accuracy.batch_size),
        "--seed",
        str(config.seed),
    ]
    line += (
        ["--gen_kwargs", f"temperature={accuracy.repeats.temperature}"]
        if seed is not None and accuracy.repeats
        else []
    )
    line += ["--limit", str(accuracy.limit)] if accuracy.limit else []
    line += ["--num_fewshot", str(accuracy.num_fewshot)] if accuracy.num_fewshot is not None else []
    line += ["--apply_chat_template"] if accuracy.apply_chat_template else []
    return [*line, "--log_samples"]


def needs(flow: Flow) -> list[str]:
    """Returns the estimated memory and disk, one line each, without what is not needed."""
    from model_serve_flow.setup.disk import data_bytes
    from model_serve_flow.setup.fit import estimate
    from model_serve_flow.system.environment_sizes import missing_bytes
    from model_serve_flow.system.sizes import gib

    sizes = estimate(flow).model_dump()
    sizes["disk_bytes"] += data_bytes(flow.config)
    if to_build := missing_bytes(flow.config.device):
        sizes["disk_for_environments_to_build_bytes"] = to_build
    return [
        f"{key.removesuffix('_bytes').replace('_', ' ')}: about {gib(size)}"
        for key, size in sizes.items()
        if size
    ]


def _in(python: Path, command: list[str]) -> list[str]:
    """Returns the command; our own Python becomes that of the step's environment."""
    return [str(python) if word == sys.executable else word for word in command]
