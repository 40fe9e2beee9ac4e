"""A machine that other programs use, and a run that finds some things missing:
the next plain `run` ends with a report.

One command repairs it all while two endless loops take the cores: a load point of the base that was
not measured, the load points of the candidates, and a task that the profile has since.
"""

import json
import shutil

import pytest
from conftest import ROOT, copy_linked, run_flow
from support.benchmarks import benchmark
from support.profiles import CI, candidates

from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import AccuracyResult, protocol_hash
from model_serve_flow.run.steps import STEPS
from model_serve_flow.system.digests import file_digest
from model_serve_flow.system.files import read_json, write_json

ROOM = ROOT / "artifacts" / "busy"
ADDED = "wikipedia"
BUSY = benchmark("busy")


def without_task(result: AccuracyResult) -> AccuracyResult:
    """What the same measurement would have written of a profile without the added task."""
    protocol = json.loads(json.dumps(result.protocol))
    protocol["accuracy"]["tasks"].remove(ADDED)
    for part in ("data_sha256", "task_definitions"):
        protocol[part].pop(ADDED)
    tasks = {name: task for name, task in result.tasks.items() if name != ADDED}
    return result.model_copy(
        update={"tasks": tasks, "protocol": protocol, "protocol_hash": protocol_hash(protocol)}
    )


def lay_out(flow: Flow) -> None:
    """A finished run of which things are missing; all that is there is recorded as finished."""
    space = flow.workspace
    for name in ("base", *candidates(flow)):
        write_json(space.results(name) / "accuracy.json", without_task(space.accuracy(name)))
        shutil.rmtree(space.raw(name))
    path = space.results("base") / "performance.json"
    found = read_json(path)
    found["points"][-1] |= {
        "valid": False,
        "completed_requests": 0,
        "invalid_reason": "0 requests completed",
    }
    write_json(path, found)
    for name in candidates(flow):
        (space.results(name) / "performance.json").unlink()
    manifest = read_json(space.manifest)
    for module in ("01_Base_Accuracy", "04_Compressed_Accuracy"):
        manifest["steps"][module]["fingerprint"] = "of the profile without that task"
    for step in manifest["steps"].values():
        for output in step["outputs"]:
            if output.startswith("results/") and (space.root / output).is_file():
                step["outputs"][output] = file_digest(space.root / output)
    write_json(space.manifest, manifest)


@pytest.fixture(scope="module")
def repaired(flow):
    """The flow after that run, and what the run said."""
    shutil.rmtree(ROOM, ignore_errors=True)
    copy_linked(flow.workspace.root, ROOM / CI)
    here = Flow.open(CI, {}, ROOM)
    lay_out(here)
    with BUSY.endless_loops(2, seconds=1800):
        outcome = run_flow(artifacts=ROOM)
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-4000:]
    yield here, outcome.stdout
    shutil.rmtree(ROOM)


def test_it_ends_with_a_report_and_the_verdicts_of_an_idle_machine(repaired, flow):
    here, said = repaired
    ours, theirs = (
        {candidate.name: candidate.verdict for candidate in one.workspace.comparison().candidates}
        for one in (here, flow)
    )
    assert ours == theirs
    assert str(here.workspace.report / "report.html") in said
    assert set(read_json(here.workspace.manifest)["steps"]) == {step.module for step in STEPS}


def test_every_load_point_is_measured_or_named(repaired):
    here, _ = repaired
    asked = set(here.config.performance.concurrency)
    for candidate in here.workspace.comparison().candidates:
        measured = {point.concurrency for point in candidate.performance}
        named = {load.concurrency: load.reason for load in candidate.unmeasured}
        assert measured | set(named) == asked and all(named.values())


def test_of_the_base_only_the_missing_load_point_was_measured(repaired, flow):
    here, said = repaired
    assert (
        "02_Base_Performance measures again what is not measured: base, load point 2: repeat 2: 0 "
        "requests" in said
    )
    loads = read_json(here.workspace.raw("base") / "guidellm-2.json")["benchmarks"]
    assert [load["config"]["strategy"]["streams"] for load in loads] == [2]
    assert not (here.workspace.raw("base") / "guidellm-1.json").exists()
    kept = here.workspace.performance("base").points
    assert kept[:-1] == flow.workspace.performance("base").points[:-1]


def test_only_the_added_task_was_scored(repaired, flow):
    here, _ = repaired
    for name in ("base", *candidates(flow)):
        raw = read_json(here.workspace.raw(name) / "lm-eval.json")
        assert list(raw["samples"]) == [ADDED]
        ours, theirs = here.workspace.accuracy(name), flow.workspace.accuracy(name)
        assert list(ours.tasks) == list(theirs.tasks) and ours.protocol == theirs.protocol
        assert [item.id for item in ours.tasks[ADDED].items] == [
            item.id for item in theirs.tasks[ADDED].items
        ]


def test_both_checkpoints_were_kept(repaired, flow):
    here, _ = repaired
    for name in candidates(flow):
        ours, theirs = here.workspace.compression(name), flow.workspace.compression(name)
        assert (ours.model, ours.seconds) == (theirs.model, theirs.seconds), (
            "made anew it would take another time"
        )
