"""Runs the commands of `model-serve-flow`, such as `run` and `compare`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from model_serve_flow.errors import EXIT_CODES, BadInput, FlowError
from model_serve_flow.flow.default_profile import default_profile
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import parse_set, profiles_folder
from model_serve_flow.from_files.command import compare
from model_serve_flow.setup.offline import VARIABLE
from model_serve_flow.system import environments
from model_serve_flow.system.checkout import MODULES, checkout
from model_serve_flow.system.places import usable_places
from model_serve_flow.system.settings import Settings
from model_serve_flow.system.streams import show_what_can_be_shown
from model_serve_flow.system.variables import variable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_serve_flow.system.hardware import Machine

PROFILE = click.option(
    "--profile",
    default=default_profile,
    show_default=f"{default_profile()}, by the processor of this machine",
    help="Name of a profile, or a YAML file.",
)
GPU_PROFILES = ("gpu-h200-llama-3.1-8b", "gpu-llama-3.1-8b", "colab-t4")  # largest load first
SETTINGS = Settings.model_fields
SET = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Sets a value of the profile."
)
QUIET_LAB = (  # no news, no check for a newer version, no extensions from the package index
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
GATE = click.option(
    "--gate",
    is_flag=True,
    help="Ends with 0 SHIP, 10 DO NOT SHIP, 20 INCONCLUSIVE; 1 an error, 2 bad input.",
)
DEVICE = click.option(
    "--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True
)
ARTIFACTS = click.option(
    "--artifacts", type=click.Path(path_type=Path), help="Folder of all results."
)

ONLY = click.option(
    "--only",
    default="",
    metavar="01,02",
    callback=lambda _context, _option, text: [
        name.strip() for name in text.split(",") if name.strip()
    ],
    help="Runs only these modules.",
)
START = click.option("--from", "start", metavar="03", help="Starts at this module.")
FORCE = click.option("--force", is_flag=True, help="Runs finished steps again.")


class FlowGroup(click.Group):
    """Shows a FlowError as a message, without a traceback, and ends with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        show_what_can_be_shown()
        try:
            os.environ.update(usable_places(os.environ))
            return super().invoke(ctx)
        except FlowError as error:
            console = Console(stderr=True)
            console.print(error.problem, style="red", markup=False, highlight=False, soft_wrap=True)
            if error.hint:
                console.print(error.hint, markup=False, highlight=False, soft_wrap=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted; everything that was started has been stopped.", err=True)
            ctx.exit(130)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the settings; --help of a single command does not."""
        with formatter.section("Variables of the environment"):
            formatter.write_dl(
                [(variable(name), field.description or "") for name, field in SETTINGS.items()]
            )


@click.group(cls=FlowGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="model-serve-flow")
def main() -> None:
    """Should this compressed model replace the base model?

    Measure, compress, measure again, decide, deploy.
    """


main.add_command(compare)


@main.command()
@PROFILE
@SET
@ARTIFACTS
@ONLY
@START
@FORCE
@click.option(
    "--mirror",
    metavar="DIR",
    help=f"Takes all from this folder, with the network off [{VARIABLE}].",
)
@GATE
def run(
    profile: str,
    assignments: tuple[str, ...],
    artifacts: Path | None,
    only: list[str],
    start: str | None,
    force: bool,
    mirror: str | None,
    gate: bool,
) -> None:
    """Runs the notebooks and shows the verdicts.

    A finished step whose inputs are unchanged is skipped; `plan` shows what would run.
    """
    from model_serve_flow.run import runner
    from model_serve_flow.run.steps import select, steps_of

    if mirror:
        os.environ[VARIABLE] = mirror
    with _refusing_bad_input(gate):
        flow = _open(profile, assignments, artifacts)
        select(only, start, steps_of(flow.config))
    runner.run(flow, only, start, force)
    if runner.report_is_current(flow):
        _show_result(flow)
    if gate:
        _end_with_verdict(flow)


@main.command()
@PROFILE
@SET
@ARTIFACTS
@ONLY
@START
@FORCE
def plan(
    profile: str,
    assignments: tuple[str, ...],
    artifacts: Path | None,
    only: list[str],
    start: str | None,
    force: bool,
) -> None:
    """Prints what `run` with the same options would do.

    For every step: whether it runs and why, its environment and command lines. At the end, the
    memory and disk that the profile needs.
    """
    from model_serve_flow.run.plan import plan as describe

    click.echo(describe(_open(profile, assignments, artifacts), only, start, force))


@main.command()
@PROFILE
@SET
@ARTIFACTS
def doctor(profile: str, assignments: tuple[str, ...], artifacts: Path | None) -> None:
    """Shows this machine, how busy it is, and whether the profile fits it."""
    from model_serve_flow.flow.busy import in_words, sample_machine
    from model_serve_flow.setup.fit import check, require
    from model_serve_flow.system.hardware import inspect_machine
    from model_serve_flow.system.sizes import gib

    flow = _open(profile, assignments, artifacts)
    machine = inspect_machine(flow.workspace.root)
    checks = check(flow, machine)
    facts, table = (
        Table(title="Machine", show_header=False),
        Table("check", "here", "needed", "", title=f"Profile {profile}"),
    )
    for key, value in machine.model_dump(mode="json").items():
        facts.add_row(key, gib(value) if key.endswith("_bytes") else str(value))
    colours = {"ok": "green", "warning": "yellow", "does not fit": "red"}
    for item in checks:
        colour = colours[item.outcome]
        table.add_row(item.name, item.value, item.needed, f"[{colour}]{item.outcome}[/{colour}]")
    console = Console()
    console.print(facts, table)
    for item in checks:
        if item.ok and item.warning:
            console.print(item, soft_wrap=True, highlight=False)
    console.print(in_words(sample_machine()), highlight=False)
    if note := gpu_note(flow, machine):
        click.echo(note)
    require(checks)


@main.command()
@PROFILE
@SET
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The mirror."
)
@click.option(
    "--list", "only_list", is_flag=True, help="Only lists what is needed and what is missing."
)
def mirror(profile: str, assignments: tuple[str, ...], to: Path, only_list: bool) -> None:
    """Fetches all that a profile needs into a folder.

    With this folder, `run --mirror` works on a machine without a network.
    """
    from model_serve_flow.setup import mirror

    os.environ.pop(VARIABLE, None)  # the mirror is filled from the network, not from itself
    config, folder = _open(profile, assignments, None).config, to.expanduser().resolve()
    for piece in mirror.pieces(config):
        fault = mirror.lack(piece, folder)
        click.echo(f"{piece}: {fault or 'there'}")
        if fault and not only_list:
            mirror.fetch(piece, folder)
            click.echo(f"{piece}: fetched")
    click.echo(
        "Not included are the wheels of the environments; pip fetches them on a machine of the "
        "same kind:"
    )
    for command in mirror.environment_commands(folder, config.device):
        click.echo(f"    {command}")


@main.command("new-profile")
@click.argument("model")
@click.option("--output", type=click.Path(path_type=Path), help="The YAML file to write.")
@click.option("--device", help="cpu, or a GPU such as t4 or 4xh100. Default: what is found here.")
@click.option("--parameters", type=int, help="Weights of a model whose config.json does not tell.")
def new_profile(
    model: str, output: Path | None, device: str | None, parameters: int | None
) -> None:
    """Writes a profile for MODEL, a hub id or a local folder, with a comment on every choice."""
    from model_serve_flow.setup import new_profile as writer

    path = writer.new_profile(model, output, device, parameters)
    click.echo(f"{path} is written. Read its comments, then:")
    for command in ("plan", "doctor", "run"):
        click.echo(f"    model-serve-flow {command} --profile {shlex.quote(str(path))}")


@main.command()
@PROFILE
@SET
@ARTIFACTS
@GATE
def report(profile: str, assignments: tuple[str, ...], artifacts: Path | None, gate: bool) -> None:
    """Writes the report again from existing results."""
    from model_serve_flow.run import runner

    with _refusing_bad_input(gate):
        flow = _open(profile, assignments, artifacts)
    runner.run(flow, ["06"], force=True)
    _show_result(flow)
    if gate:
        _end_with_verdict(flow)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@DEVICE
def lab(arguments: tuple[str, ...], device: environments.Device) -> None:
    """Opens JupyterLab with a kernel for each environment.

    It asks nothing of any host. ARGUMENTS go to JupyterLab.
    """
    for name in environments.NAMES:
        environments.ensure(name, device)
    python = str(environments.environment("notebook").python)
    os.environ.update(environments.process_variables(), JUPYTER_PATH=environments.jupyter_path())
    folder = str((checkout() / MODULES).parent)  # both sequences of notebooks
    root = ["--allow-root"] if os.getuid() == 0 else []
    given = ["--notebook-dir", folder, *root, *QUIET_LAB, *arguments]
    os.execv(python, [python, "-m", "jupyterlab", *given])


@main.command()
@DEVICE
def kernels(device: environments.Device) -> None:
    """Installs the kernels for a JupyterLab that already runs, such as that of a workbench."""
    from model_serve_flow.system import jupyter_kernels

    folder = jupyter_kernels.user_kernels(os.environ)
    for name in environments.NAMES:
        environments.ensure(name, device)
    written = [str(kernel) for kernel in jupyter_kernels.install(folder)]
    click.echo("Installed these kernels. Reload the page of JupyterLab, then open a notebook:")
    for kernel in written:
        click.echo(f"    {kernel}")
    click.echo(f"To remove them: {shlex.join(['rm', '-r', *written])}")


def gpu_note(flow: Flow, machine: Machine) -> str:
    """Recommends the largest GPU profile that fits this machine, if the user chose a CPU profile.

    Returns:
        The note; empty if there is nothing to recommend.
    """
    from model_serve_flow.setup.fit import check, estimate
    from model_serve_flow.system.sizes import gib

    if flow.config.device == "gpu" or not machine.gpus:
        return ""
    for name in GPU_PROFILES:
        if not (profiles_folder() / f"{name}.yaml").is_file():
            continue
        larger = Flow.open(name, artifacts=flow.workspace.root.parent)
        checks = check(larger, machine)
        waits = any(item.warning and item.name.startswith("GPU memory") for item in checks)
        if all(item.ok for item in checks) and not waits:
            return (
                f"This machine has a GPU ({machine.gpus[0].name}) and fits the profile {name}. It "
                f"is not the default, because it downloads a model of "
                f"{gib(estimate(larger).weights_bytes)}: model-serve-flow run --profile {name}"
            )
    return ""


def _open(profile: str, assignments: tuple[str, ...], artifacts: Path | None) -> Flow:
    command = shlex.join(["model-serve-flow", *sys.argv[1:]])
    return Flow.open(profile, parse_set(assignments), artifacts, command)


@contextlib.contextmanager
def _refusing_bad_input(gate: bool) -> Iterator[None]:
    """Turns a FlowError of the block into BadInput with --gate.

    A wrong profile or choice of steps then has the exit code of bad input.
    """
    try:
        yield
    except FlowError as error:
        if not gate:
            raise
        raise BadInput(error.problem, error.hint) from error


def _end_with_verdict(flow: Flow) -> None:
    """Ends the command with the exit code of the verdict.

    Raises:
        FlowError: there is no report of the present results.
    """
    from model_serve_flow.compare.gate import gate_verdict
    from model_serve_flow.run import runner

    if not runner.report_is_current(flow):
        raise FlowError(
            "--gate: there is no verdict, because the report is not of the present results.",
            "Run all steps up to 06: model-serve-flow run.",
        )
    verdict = gate_verdict(flow.workspace.comparison(), flow.config.deploy.candidate)
    click.get_current_context().exit(EXIT_CODES[verdict])


def _show_result(flow: Flow) -> None:
    from model_serve_flow.report.terminal import verdict_table

    workspace = flow.workspace
    console = Console()
    console.print(verdict_table(workspace.comparison()))
    console.print(f"Report: {workspace.report / 'report.html'}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
