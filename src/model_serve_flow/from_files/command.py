"""Defines the command `model-serve-flow compare BASE CANDIDATE`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from model_serve_flow.from_files.rules import Rules

SIDE = click.Path(exists=True, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
Parameter = click.Parameter | None
Context = click.Context | None


class Number(click.ParamType):
    """Parses a number above 0 and at most `most`, or below 1 for a share.

    Attributes:
        what: what the number is, for the message.
    """

    name = "number"

    def __init__(self, what: str, most: float | None = 100) -> None:
        self.what, self.most = what, most

    def convert(self, value: Any, param: Parameter, ctx: Context) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        fits = number < 1 if self.most is None else number <= self.most
        if not (math.isfinite(number) and number > 0 and fits):
            end = "below 1" if self.most is None else f"at most {self.most:g}"
            self.fail(f"{value} is not {self.what}, above 0 and {end}.", param, ctx)
        return number


DROP = Number("a drop in points")
RISE = Number("a rise in percent")
LOSS = Number("a loss in points, or in percent of a perplexity")
SHARE = Number("a share", most=None)


class TaskMargin(click.ParamType):
    """Parses TASK=MARGIN."""

    name = "task=number"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, float]:
        task, equals, number = value.rpartition("=")
        if not equals or not task:
            self.fail(f"{value!r} is not of the form TASK=MARGIN.", param, ctx)
        return task, LOSS.convert(number, param, ctx)


class TaskName(click.ParamType):
    """Parses the name of a task, which is not empty."""

    name = "task"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> str:
        if not value.strip():
            self.fail(f"{value!r} is no task; name one, or leave the option out.", param, ctx)
        return value


def _output(name: str, what: str) -> Any:
    return click.option(f"--{name}", type=FILE, metavar="FILE", help=f"Writes {what}.")


@click.command()
@click.argument("base", type=SIDE)
@click.argument("candidate", type=SIDE)
@click.option(
    "--margin",
    type=DROP,
    default=2.0,
    show_default=True,
    help="Accepted drop of each task, in points.",
)
@click.option(
    "--average-margin",
    type=DROP,
    show_default="half of --margin, or all of it for one task",
    help="Accepted drop of the average over the tasks, in points.",
)
@click.option(
    "--perplexity-margin",
    type=RISE,
    default=2.0,
    show_default=True,
    help="Accepted rise of each perplexity, in percent.",
)
@click.option(
    "--task-margin",
    "task_margins",
    type=TaskMargin(),
    multiple=True,
    metavar="TASK=MARGIN",
    help="Accepted loss of one task, in its unit.",
)
@click.option(
    "--retention",
    type=SHARE,
    default=0.95,
    show_default=True,
    help="Share of the base's score above guessing that must be kept.",
)
@click.option(
    "--required",
    type=TaskName(),
    multiple=True,
    metavar="TASK",
    help="Blocks SHIP if it is missing or cannot decide.",
)
@click.option(
    "--advisory",
    type=TaskName(),
    multiple=True,
    metavar="TASK",
    help="Is compared, and does not decide.",
)
@_output("html", "one self-contained page")
@_output("markdown", "the same as Markdown")
@_output("json", "everything that was found")
@_output("junit", "a test case for the verdict and for each task")
@click.pass_context
def compare(ctx: click.Context, base: Path, candidate: Path, **options: Any) -> None:  # fmt: skip
    """Decides from two result files or folders whether CANDIDATE may replace BASE.

    Reads results of this flow, lm-eval's --log_samples output, a CSV or JSONL of id and score, and
    for speed GuideLLM's JSON or that of vllm bench serve. Starts no engine.

    Exit code: 0 SHIP, 10 DO NOT SHIP, 20 INCONCLUSIVE, 1 an error, 2 bad input or usage.
    """
    from model_serve_flow.from_files.decision import compare_sides
    from model_serve_flow.from_files.outputs import WRITERS, require_outputs, show, write
    from model_serve_flow.from_files.recognise import read_side

    outputs = {name: options[name] for name in WRITERS if options[name]}
    require_outputs(outputs, (base, candidate))
    found = compare_sides(read_side(base), read_side(candidate), _rules(options))
    show(found)
    for name, path in outputs.items():
        write(name, path, found)
    ctx.exit(found.exit_code)


def _rules(options: dict[str, Any]) -> Rules:
    from model_serve_flow.compare.tiers import Tiers
    from model_serve_flow.errors import BadInput
    from model_serve_flow.flow.profile import Verdict
    from model_serve_flow.from_files.rules import Rules

    try:
        tiers = Tiers(options["required"], options["advisory"])
    except ValueError as error:
        raise BadInput(f"{error}.", "See --required and --advisory.") from error
    margins = Verdict(
        task_margin_points=options["margin"],
        perplexity_margin_percent=options["perplexity_margin"],
        retention=options["retention"],
    )
    return Rules(
        margins,
        options["average_margin"],
        dict(options["task_margins"]),
        tiers,
    )
