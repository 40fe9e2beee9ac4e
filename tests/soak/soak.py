"""Kills the real flow at random points, and looks whether the next run finishes as if nothing had
happened.

    python tests/soak/soak.py --points 20 --seed 0 --artifacts DIR

First, unless DIR has one, an undisturbed run of the profile: the reference. Then, for each point: a
copy of it without what one step makes, `run --only NN --force`, a fault at a random time inside the
step, and `run --only NN`.
Not part of the tests: 20 points of `ci` take an hour. See tests/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from comparable import comparable, first_differences

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.default_profile import for_this_processor
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.run.steps import STEPS, Step, expand
from model_serve_flow.serve.vllm import SERVER_MODULE
from model_serve_flow.system import processes
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.digests import content_digests, file_digest
from model_serve_flow.system.files import write_json, write_text
from model_serve_flow.system.processes import RUN_VARIABLE

CTRL_C_SECONDS = 10  # what is promised: after this long nothing of the run is left
KILL_SECONDS = 60
KERNEL = "ipykernel_launcher"
POLL_SECONDS = 0.1
# a step that was quicker than in the reference is over before the fault: the next try comes earlier
TRIES = 4
COPIED = ("manifest.json", "data", "models", "results", "report", "deploy")
CONTINUED = re.compile(r"\b(kept|continu\w*|resum\w*|goes on)\b", re.IGNORECASE)
# Of the runner itself: the end of a notebook's log, which it shows, may hold another.
UNCAUGHT = re.compile(
    r'^Traceback \(most recent call last\):\n(?: .*\n)*?  File ".*model_serve_flow/cli\.py"', re.M
)
# of hidden names: what is moved when it is whole
UNFINISHED = re.compile(r"\.(tmp|partial|old)$|\.running\.")


@dataclass(frozen=True)
class Victim:
    """What is hit: who, with which signal, how soon nothing may be left,
    and how the run may then end.
    """

    name: str
    number: signal.Signals
    seconds: int
    statuses: tuple[int, ...]


# A kernel or a server that had done its work already is not missed: the run may end well.
VICTIMS = (
    Victim("runner", signal.SIGKILL, KILL_SECONDS, (-signal.SIGKILL,)),
    Victim("process group", signal.SIGKILL, KILL_SECONDS, (-signal.SIGKILL,)),
    Victim("every process", signal.SIGKILL, KILL_SECONDS, (-signal.SIGKILL,)),
    Victim("kernel", signal.SIGKILL, KILL_SECONDS, (1, 0)),
    Victim("vLLM", signal.SIGKILL, KILL_SECONDS, (1, 0)),
    Victim("Ctrl-C", signal.SIGINT, CTRL_C_SECONDS, (130,)),
)


@dataclass(frozen=True)
class Point:
    """One fault: in which step, how many seconds after its start, and what it hits."""

    number: int
    step: Step
    seconds: float
    victim: Victim


@dataclass
class Outcome:
    """What came of a point; it survived if there are no problems."""

    point: int
    step: str
    victim: str
    struck_after_seconds: float = 0.0
    status: int | None = None
    gone_after_seconds: float | None = None
    finished_before: int = 0
    said_so: bool = False
    recovery_seconds: float = 0.0
    second_run_percent: float = 0.0
    repeated_percent: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        return not self.problems


# --- The plan ---


def plan(points: int, seed: int, seconds: dict[str, float]) -> list[Point]:
    """`points` faults: victims in turns in a random order,
    steps in proportion to their seconds (module -> seconds).
    """
    chance = random.Random(seed)
    chosen: list[Point] = []
    while len(chosen) < points:
        for victim in chance.sample(VICTIMS, len(VICTIMS)):
            steps = [step for step in STEPS if victim.name != "vLLM" or step.environment == "serve"]
            [step] = chance.choices(steps, [seconds[step.module] for step in steps])
            moment = chance.uniform(0.02, 0.95) * seconds[step.module]
            chosen.append(Point(len(chosen) + 1, step, moment, victim))
    return chosen[:points]


# --- One run of the flow ---


class Run:
    """`model-serve-flow run` as a child in a session of its own, with all that it starts."""

    def __init__(self, profile: str, artifacts: Path, output: Path, *arguments: str) -> None:
        self.root, self.output = (artifacts / Flow.open(profile).config.name).resolve(), output
        command = [sys.executable, "-m", "model_serve_flow.cli", "run", "--profile", profile]
        command += ["--artifacts", str(artifacts), *arguments]
        self.started = time.monotonic()
        self.seen: set[psutil.Process] = set()
        with output.open("wb") as stream:
            self.child = subprocess.Popen(
                command,
                cwd=checkout(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def over(self) -> bool:
        return self.child.poll() is not None

    def wait(self) -> float:
        """Seconds it took in all, once it has ended."""
        self.child.wait()
        return time.monotonic() - self.started

    def look(self) -> None:
        """Remembers every process below the runner:
        one that lost its mark and its parent must not be overlooked.
        """
        self.seen |= set(processes.family(self.child.pid)[1:])

    def marked(self) -> list[psutil.Process]:
        """The notebook's process and all it started, whatever their parent or session."""
        return processes.marked(RUN_VARIABLE, lambda value: value.startswith(f"{self.root}#"))

    def alive(self) -> list[psutil.Process]:
        """Every process of the run, the runner and those of its session too."""
        found = {
            process.pid: process
            for process in (*self.marked(), *filter(processes.alive, self.seen))
        }
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, *processes.GONE):
                if os.getsid(process.pid) == self.child.pid and processes.alive(process):
                    found[process.pid] = process
        return list(found.values())

    def end(self) -> None:
        """Kills what is left of it."""
        self.child.kill()  # first, and waited for here: psutil would take its exit status
        self.child.wait()
        processes.end(self.alive, 1)


def wait_for(met: Callable[[], Any], run: Run) -> Any:
    """The first true value of `met`; none if the run ends before."""
    while not (value := met()):
        if run.over():
            return None
        time.sleep(POLL_SECONDS)
    return value


def strike(run: Run, point: Point) -> float | None:
    """Hits the victim at the point's time, or as soon as it is there.

    Returns:
        Seconds since the start of the step; none if the run was over before.
    """
    if not wait_for(lambda: f"{point.step.module}: started" in run.text, run):
        return None
    begun = time.monotonic()
    if not wait_for(lambda: time.monotonic() - begun >= point.seconds, run):
        return None
    run.look()
    if point.victim.name in ("Ctrl-C", "process group"):  # as a terminal does it
        os.killpg(run.child.pid, point.victim.number)
        return time.monotonic() - begun
    targets = wait_for(lambda: targets_of(run, point.victim), run)
    for process in targets or ():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(point.victim.number)
    return time.monotonic() - begun if targets else None


def targets_of(run: Run, victim: Victim) -> list[psutil.Process]:
    """The processes to hit; empty if they are not there (yet)."""
    if victim.name == "runner":
        return [psutil.Process(run.child.pid)]
    if victim.name == "every process":
        return run.alive()
    part = KERNEL if victim.name == "kernel" else SERVER_MODULE
    found = [process for process in run.marked() if part in command_line(process)]
    # two servers may run, one of them waiting for its turn
    return random.sample(found, 1) if found else []


def command_line(process: psutil.Process) -> str:
    """Its arguments in one line; empty if it is gone."""
    with contextlib.suppress(*processes.GONE):
        return " ".join(process.cmdline())
    return ""


def gone_after(run: Run, seconds: float) -> tuple[float | None, list[str]]:
    """Seconds until nothing of the run was left, or none and what still was,
    which is killed then.
    """
    started = time.monotonic()
    while left := run.alive():
        if time.monotonic() - started > seconds:
            lines = [command_line(process)[:120] for process in left]
            run.end()
            return None, lines
        time.sleep(POLL_SECONDS)
    run.child.wait()
    return time.monotonic() - started, []


# --- What lies on the disk ---


def copy_workspace(reference: Path, copy: Path, made: Sequence[str]) -> None:
    """Copies a workspace but for what a step makes (paths inside it); weights are linked,
    for nobody edits them.

    Neither logs, notebooks and caches come along, nor what the tools left (`raw`): nothing of it
    may help the step.
    """
    leave = {reference / path for path in made}

    def ignored(folder: str, names: list[str]) -> set[str]:
        place = Path(folder)
        return {
            name
            for name in names
            if place / name in leave or name == "raw" or (place == reference and name not in COPIED)
        }

    def copy_file(source: str, destination: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, destination)

    shutil.copytree(reference, copy, ignore=ignored, copy_function=copy_file)


def broken_files(root: Path) -> list[str]:
    """JSON files that are not whole."""
    broken = []
    folders = (root / name for name in ("results", "report", "deploy"))
    for path in [
        root / "manifest.json",
        *(path for folder in folders for path in sorted(folder.rglob("*.json"))),
    ]:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            broken.append(f"{path.relative_to(root)} is half-written: {error}")
    return broken


def unfinished_files(root: Path) -> list[str]:
    """What should have been moved or removed once it was whole, or given up."""
    hidden = (path for path in sorted(root.rglob(".*")) if UNFINISHED.search(path.name))
    return [f"{path.relative_to(root)} was left" for path in hidden]


def finished_results(root: Path, step: Step, config: FlowConfig) -> dict[str, str]:
    """Path -> digest of each result of the step that is there."""
    paths = [
        path
        for path in expand(step.outputs, config)
        if path.startswith("results/") and (root / path).is_file()
    ]
    return {path: file_digest(root / path) for path in paths}


def content(root: Path, step: Step, config: FlowConfig) -> dict[str, Any]:
    """File -> what must be the same in every run of the step: a document without times,
    or a digest.
    """
    found: dict[str, Any] = {}
    for path in expand(step.outputs, config):
        if (root / path).is_dir():
            found |= {
                f"{path}/{name}": digest for name, digest in content_digests(root / path).items()
            }
        elif not path.endswith(".json"):
            found[path] = (root / path).is_file()  # a page for people, drawn from the JSON
        else:
            found[path] = file_digest(root / path) if (root / path).is_file() else None
    for path in found:
        if path.endswith(".json") and found[path] and not path.startswith(("models/", "data/")):
            document = json.loads((root / path).read_text(encoding="utf-8"))
            # The same results compared again: there is nothing in it that time could change.
            found[path] = document if step.module == "06_Comparison" else comparable(document)
    return found


# --- A point ---


def survive(point: Point, profile: str, reference: Path, folder: Path, seconds: float) -> Outcome:
    """Carries a point out in `folder`; `seconds` is what the step took in the reference."""
    outcome = Outcome(point.number, point.step.module, point.victim.name)
    for attempt in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        earlier = dataclasses.replace(point, seconds=point.seconds * 0.6**attempt)
        if disturb(earlier, profile, reference, folder, outcome):
            recover(point, profile, reference, folder, seconds, outcome)
            return outcome
    outcome.problems.append(f"the step was over before the fault, {TRIES} times")
    return outcome


def disturb(point: Point, profile: str, reference: Path, folder: Path, outcome: Outcome) -> bool:
    """Runs the step, hits the victim and notes what is left;
    whether the fault came before the end of the run.
    """
    config = Flow.open(profile).config
    root = folder / config.name
    copy_workspace(reference, root, expand(point.step.outputs, config))
    run = Run(profile, folder, folder / "disturbed.txt", "--only", point.step.number, "--force")
    try:
        struck = strike(run, point)
        if struck is None:
            return False
        outcome.struck_after_seconds = round(struck, 1)
        gone, left = gone_after(run, point.victim.seconds)
    finally:
        run.end()
    outcome.gone_after_seconds, outcome.status = (
        None if gone is None else round(gone, 1),
        run.child.returncode,
    )
    if left:
        outcome.problems.append(
            f"{point.victim.seconds} s later there still was: {'; '.join(left)}"
        )
    if outcome.status not in point.victim.statuses:
        outcome.problems.append(f"exit status {outcome.status} instead of {point.victim.statuses}")
    if UNCAUGHT.search(run.text):
        outcome.problems.append("the runner showed a traceback")
    outcome.problems += broken_files(root)
    return True


def recover(
    point: Point, profile: str, reference: Path, folder: Path, seconds: float, outcome: Outcome
) -> None:
    """Runs the step again, without force, and compares what it leaves with the reference."""
    config = Flow.open(profile).config
    root, step = folder / config.name, point.step
    finished = finished_results(root, step, config)
    run = Run(profile, folder, folder / "recovered.txt", "--only", step.number)
    try:
        outcome.recovery_seconds = round(run.wait(), 1)
    finally:
        run.end()
    if run.child.returncode != 0:
        outcome.problems.append(
            f"the next run ended with {run.child.returncode}: {run.text.strip()[-400:]}"
        )
        return
    again = step_seconds(root)[step.module] if f"{step.module}: started" in run.text else 0.0
    outcome.second_run_percent = round(100 * again / seconds, 1)
    outcome.repeated_percent = round(
        max(0.0, 100 * (outcome.struck_after_seconds + again) / seconds - 100), 1
    )
    outcome.finished_before = len(finished)
    outcome.said_so = (
        bool(CONTINUED.search(run.text + read_log(root, step))) or "skipped" in run.text
    )
    changed = [path for path, digest in finished.items() if file_digest(root / path) != digest]
    outcome.problems += [f"{path} was finished and was made again" for path in changed]
    if finished and not outcome.said_so:
        outcome.problems.append("the next run did not say that it continued")
    outcome.problems += [*broken_files(root), *unfinished_files(root)]
    outcome.problems += first_differences(
        content(reference, step, config), content(root, step, config)
    )


def read_log(root: Path, step: Step) -> str:
    """What the notebook printed, by papermill's log."""
    log = root / "logs" / f"{step.module}.log"
    return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""


def step_seconds(root: Path) -> dict[str, float]:
    """Module -> seconds it took, by the manifest."""
    steps = json.loads((root / "manifest.json").read_text(encoding="utf-8")).get("steps", {})
    return {module: entry["seconds"] for module, entry in steps.items()}


# --- The reference, the report ---


def make_reference(profile: str, folder: Path) -> Path:
    """Workspace of an undisturbed run, made if it is not there; FlowError, with the reason,
    if that fails.
    """
    root = (folder / Flow.open(profile).config.name).resolve()
    done = step_seconds(root) if (root / "manifest.json").is_file() else {}
    if root.exists() and set(done) != {step.module for step in STEPS}:
        raise FlowError(
            f"{root} is not the whole of an undisturbed run.", "Delete it: it is made anew."
        )
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(profile, folder, folder / "run.txt")  # a step that is done and unchanged is skipped
    try:
        run.wait()
    finally:
        run.end()
    if run.child.returncode != 0:
        raise FlowError(
            f"The undisturbed run failed, so nothing can be compared with it:\n{run.text.strip()}"
        )
    return root


def totals(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures over all points; seconds and percent as medians and maxima."""
    went = [outcome for outcome in outcomes if outcome.gone_after_seconds is not None]
    return {
        "points": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        "recovery_seconds": spread(outcome.recovery_seconds for outcome in outcomes),
        "gone_after_seconds": spread(outcome.gone_after_seconds for outcome in went),
        "ctrl_c_gone_after_seconds": spread(
            o.gone_after_seconds for o in went if o.victim == "Ctrl-C"
        ),
        "second_run_percent": spread(outcome.second_run_percent for outcome in outcomes),
        "repeated_percent": spread(outcome.repeated_percent for outcome in outcomes),
        "finished_results_kept": sum(
            outcome.finished_before for outcome in outcomes if outcome.survived
        ),
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and maximum; empty without values."""
    known = list(values)
    return {"median": round(statistics.median(known), 1), "max": max(known)} if known else {}


def table(outcomes: Sequence[Outcome]) -> str:
    """The report as markdown: a row per point, the totals, and the problems in full."""
    heads = (
        "point",
        "step",
        "victim",
        "after s",
        "exit",
        "gone after s",
        "results kept",
        "recovery s",
        "second run %",
    )
    heads = (*heads, "repeated %", "survived")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for o in outcomes:
        cells = (
            o.point,
            o.step,
            o.victim,
            o.struck_after_seconds,
            o.status,
            o.gone_after_seconds,
            o.finished_before,
        )
        cells = (
            *cells,
            o.recovery_seconds,
            o.second_run_percent,
            o.repeated_percent,
            "yes" if o.survived else "NO",
        )
        lines.append(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    figures = totals(outcomes)
    lines += ["", f"Survived {figures['survived']} of {figures['points']}.", ""]
    for name, value in figures.items():
        if isinstance(value, dict) and value:
            lines.append(
                f"- {name.replace('_', ' ')}: median {value['median']}, largest {value['max']}"
            )
    lines += [f"- point {o.point}: {problem}" for o in outcomes for problem in o.problems]
    return "\n".join(lines) + "\n"


def report(output: Path, facts: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Writes `output` (.json) and the same as markdown beside it."""
    points = [{**dataclasses.asdict(outcome), "survived": outcome.survived} for outcome in outcomes]
    write_json(output, {**facts, "totals": totals(outcomes), "points": points})
    write_text(output.with_suffix(".md"), table(outcomes))


def soak(options: argparse.Namespace) -> bool:
    """Carries out the plan; whether every point survived."""
    reference = make_reference(options.profile, options.artifacts / "reference")
    seconds = step_seconds(reference)
    facts = {"profile": options.profile, "seed": options.seed, "reference_seconds": seconds}
    facts |= {"kill_seconds": KILL_SECONDS, "ctrl_c_seconds": CTRL_C_SECONDS}
    output = options.output or options.artifacts / "soak.json"
    outcomes: list[Outcome] = []
    for point in plan(options.points, options.seed, seconds):
        print(
            f"{point.number}: {point.victim.name} after {point.seconds:.0f} s of "
            f"{point.step.module}",
            flush=True,
        )
        folder = options.artifacts / f"point-{point.number:02d}"
        outcomes.append(
            survive(point, options.profile, reference, folder, seconds[point.step.module])
        )
        report(output, facts, outcomes)
        print(
            "   " + ("survived" if outcomes[-1].survived else "; ".join(outcomes[-1].problems)),
            flush=True,
        )
        if outcomes[-1].survived:
            shutil.rmtree(folder)
    print(table(outcomes))
    return all(outcome.survived for outcome in outcomes)


def main() -> None:
    """Exit status 0 if every point survived, 1 if not, 2 if there is nothing to compare with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ci = for_this_processor("ci")
    parser.add_argument("--profile", default=ci, help=f"by default {ci}")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--artifacts", type=Path, required=True, metavar="DIR", help="reference, copies and report"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="default: DIR/soak.json; .md beside it"
    )
    options = parser.parse_args()
    options.artifacts = options.artifacts.resolve()
    # A shell that starts this in the background lets its children ignore Ctrl-C; a handler is not
    # handed down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(0 if soak(options) else 1)
    except FlowError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
