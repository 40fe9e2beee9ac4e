import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from rich.console import Console

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.run import notebooks, progress, runner
from model_serve_flow.run.due import Due
from model_serve_flow.run.plan import plan
from model_serve_flow.run.steps import (
    STEPS,
    Step,
    expand,
    module_folder,
    needs_hub,
    select,
    steps_of,
)
from model_serve_flow.system import environments
from model_serve_flow.system.environments import Environment
from model_serve_flow.system.files import read_json

FIRST = Step("00_First", "notebook", ("model",), (), ("data/first.txt",))
SECOND = Step("01_Second", "notebook", ("performance",), ("data/first.txt",), ("data/second.txt",))
WRITE = """from pathlib import Path
from model_serve_flow.flow.flow import Flow
flow = Flow.open(profile, overrides, artifacts)
flow.workspace.data.mkdir(parents=True, exist_ok=True)
Path(flow.workspace.data / "{name}.txt").write_text("{text}")"""


def write_notebook(folder, step, *sources):
    parameters = nbformat.v4.new_code_cell(
        "profile = 'cpu-smollm2'\noverrides = {}\nartifacts = None"
    )
    parameters.metadata["tags"] = ["parameters"]
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        parameters,
        *map(nbformat.v4.new_code_cell, sources),
    ]
    module = folder / step.module
    module.mkdir(parents=True, exist_ok=True)
    kernel = {
        "name": "model-serve-flow-notebook",
        "display_name": "model-serve-flow (notebook)",
        "language": "python",
    }
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        module / step.notebook,
    )
    (module / "utils.py").write_text("")


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two tiny real notebooks; the kernel is this very Python."""
    folder = tmp_path / "modules"
    monkeypatch.setenv("MODEL_SERVE_FLOW_MODULES", str(folder))
    monkeypatch.setenv("MODEL_SERVE_FLOW_ENVIRONMENTS", str(tmp_path / "environments"))
    environment = Environment("notebook", tmp_path / "environments" / "notebook")
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    environment.python.chmod(0o755)
    environments._register_kernel(environment)
    write_notebook(folder, FIRST, WRITE.format(name="first", text="1"))
    write_notebook(folder, SECOND, WRITE.format(name="second", text="2"))
    return folder


class Inline:
    """Executes the cells in this process, as `Notebooks` does in a kernel:
    for tests of what the runner decides.
    """

    def __init__(self, workspace, config):
        self.workspace = workspace

    def execute(self, step, environment, python, parameters, show):
        notebook, names = nbformat.read(module_folder(step) / step.notebook, as_version=4), {}
        output, status = self.workspace.notebooks / step.notebook, 0
        try:
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    exec(cell.source, names)
                    names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
        except Exception as error:
            cell.outputs, status = (
                [nbformat.v4.new_output("error", ename=type(error).__name__, evalue=str(error))],
                1,
            )
        output.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, output)
        return status, output, self.workspace.logs / "none.log"

    def stop(self):
        pass


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(runner, "Notebooks", Inline)


class Run:
    def __init__(self, artifacts):
        self.artifacts = artifacts

    def __call__(self, *only, overrides=None, force=False, start=None):
        """Runs the two steps and returns what the terminal showed."""
        console = Console(record=True, force_terminal=False, width=200, quiet=False)
        flow = Flow.open("cpu-smollm2", overrides or {}, self.artifacts)
        ready = lambda name, device: environments.environment(name)  # noqa: E731
        runner.run(
            flow,
            only,
            start,
            force,
            steps=(FIRST, SECOND),
            provide=ready,
            require=lambda flow: None,
            console=console,
        )
        return console.export_text()

    @property
    def root(self):
        return self.artifacts / "cpu-smollm2"


@pytest.fixture
def run(modules, tmp_path):
    return Run(tmp_path / "artifacts")


def test_runs_then_skips(run):
    shown = run(overrides={"performance.seconds": 9})
    assert "00_First: started" in shown
    assert "01_Second: finished after" in shown
    manifest = read_json(run.root / "manifest.json")
    assert manifest["overrides"] == {"performance.seconds": 9}
    assert manifest["profile"]["performance"]["seconds"] == 9
    assert manifest["versions"]["notebook"]["python"].startswith("3.")
    assert set(manifest["steps"]) == {"00_First", "01_Second"}
    assert manifest["steps"]["01_Second"]["seconds"] > 0
    assert (run.root / "notebooks" / "00_First.ipynb").is_file()

    shown = run(overrides={"performance.seconds": 9})
    assert shown.count("skipped") == 2
    assert "started" not in shown


def test_runs_again_what_depends_on_a_change(run, modules, inline):
    run()
    shown = run(overrides={"performance.seconds": 7})
    assert "00_First" in shown and "00_First: started" not in shown
    assert "01_Second: started" in shown

    write_notebook(modules, FIRST, WRITE.format(name="first", text="changed"))
    shown = run(overrides={"performance.seconds": 7})
    assert "00_First: started" in shown
    assert "01_Second: started" in shown


def test_same_output_leaves_later_steps_alone(run, modules, inline):
    run()
    write_notebook(modules, FIRST, WRITE.format(name="first", text="1"), "'a new cell'")
    shown = run()
    assert "00_First: started" in shown
    assert "01_Second: started" not in shown


def test_a_finished_step_runs_again_by_force(run, inline):
    run()
    assert "00_First: finished" in run("00", force=True)


def test_changed_output_is_made_again(run, inline):
    run()
    (run.root / "data" / "second.txt").write_text("edited")
    assert "01_Second: started" in run()
    (run.root / "data" / "second.txt").unlink()
    assert "01_Second: started" in run()


def actions(run, *only, overrides=None, force=False):
    """What the plan says, and what a run then does, by step."""
    flow = Flow.open("cpu-smollm2", overrides or {}, run.artifacts)
    steps = select(only, steps=(FIRST, SECOND))
    planned = {step.module: decision.action for step, decision in Due(flow).plan(steps, force)}
    shown = run(*only, overrides=overrides, force=force)
    did = {module: "run" if f"{module}: started" in shown else "skip" for module in planned}
    return planned, did


def test_the_plan_says_what_a_run_then_does(run, modules, inline):
    def same(*only, **options):
        planned, did = actions(run, *only, **options)
        assert planned == did
        return " ".join(did.values())

    assert same() == "run run"  # nothing was there
    assert same() == "skip skip"
    assert same(overrides={"performance.seconds": 7}) == "skip run"
    assert same("00", overrides={"performance.seconds": 8}) == "skip"
    (run.root / "data" / "second.txt").write_text("edited")
    assert same() == "skip run"
    assert same("01", force=True) == "run"
    assert same(force=True) == "run run"
    (run.root / "data" / "first.txt").unlink()
    with pytest.raises(FlowError, match="01_Second needs"):
        actions(run, "01")


@pytest.mark.parametrize(("text", "second"), [("1", "skip"), ("another", "run")])
def test_the_plan_says_what_depends_on_a_file_that_is_yet_to_be_written(
    run, modules, inline, text, second
):
    run()
    write_notebook(modules, FIRST, WRITE.format(name="first", text=text), "'a new cell'")
    planned, did = actions(run)
    assert planned == {"00_First": "run", "01_Second": "depends"}
    assert did == {"00_First": "run", "01_Second": second}
    run()
    (run.root / "manifest.json").unlink()
    assert actions(run)[0] == {"00_First": "run", "01_Second": "run"}


def test_a_damaged_manifest_is_set_aside_and_the_run_goes_on(run, inline):
    run()
    whole = (run.root / "manifest.json").read_text()
    (run.root / "manifest.json").write_text(whole[:-20])
    shown = run()
    assert "The manifest was damaged" in shown and shown.count("finished after") == 2
    assert (run.root / "manifest.damaged.json").read_text() == whole[:-20]
    assert run().count("skipped") == 2


def test_failing_cell_is_named(run, modules):
    write_notebook(modules, FIRST, "x = 1", "y = 0\nx / y")
    with pytest.raises(FlowError) as caught:
        run()
    assert "00_First failed in cell 4 of 4 (y = 0)" in caught.value.problem
    assert caught.value.problem.endswith("ZeroDivisionError: division by zero")
    assert str(run.root / "notebooks" / "00_First.ipynb") in caught.value.hint
    assert str(run.root / "logs" / "00_First.log") in caught.value.hint
    assert "00_First" not in read_json(run.root / "manifest.json")["steps"]
    assert not (run.root / "data" / "second.txt").exists()


def test_notebook_that_leaves_no_output(run, modules, inline):
    write_notebook(modules, FIRST, "1 + 1")
    with pytest.raises(FlowError, match=r"did not write data/first\.txt"):
        run()


TELL = """import time
from model_serve_flow.system import live
for done in (0, 206):
    live.report("base: lm-eval", done, 618, "requests")
    time.sleep(1)
live.report("base: lm-eval", 618, 618, "requests")"""


def test_a_long_step_shows_what_it_does(run, modules, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    write_notebook(modules, FIRST, TELL, "time.sleep(1)", WRITE.format(name="first", text="1"))
    lines = run("00").splitlines()
    telling = [line for line in lines if "lm-eval" in line]
    assert any(
        re.fullmatch(r"00_First: \d+ s, cell 3 of 5, base: lm-eval, 0 of 618 requests", s)
        for s in telling
    )
    assert re.search(
        r"cell 3 of 5, base: lm-eval, 206 of 618 requests, about \d+ s left$", telling[-1]
    )
    assert any(line.endswith(", cell 4 of 5") for line in lines)
    assert not list(run.root.glob(".live*"))


def test_missing_input_is_named(run):
    with pytest.raises(FlowError, match=r"01_Second needs .*data/first\.txt, which is missing"):
        run("01")


def test_unknown_module():
    with pytest.raises(FlowError, match=r"Unknown module '09'.*00_Setup"):
        select(["09"])


def test_selection():
    assert [step.number for step in select(start="05")] == ["05", "06", "07"]
    assert [step.number for step in select(["04", "01_Base_Accuracy"])] == ["01", "04"]


def test_a_server_left_by_a_notebook_is_stopped(run, modules):
    leave = (
        "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    )
    write_notebook(modules, FIRST, leave, WRITE.format(name="first", text="1"))
    run("00")
    notebook = json.loads((run.root / "notebooks" / "00_First.ipynb").read_text())
    pids = [
        int(o["text"][0])
        for c in notebook["cells"]
        for o in c.get("outputs", [])
        if o["output_type"] == "stream"
    ]
    assert pids and not any(psutil.pid_exists(pid) for pid in pids)


SCRIPT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import test_runner
test_runner.Run(pathlib.Path({artifacts!r}))("00")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_run_is_refused_until_an_interrupt_ends_the_first_and_all_it_started(
    run, modules, number
):
    child, family = start_run(run, modules, BUSY)
    began = read_json(run.root / ".run.lock")["started_at"]
    with pytest.raises(FlowError, match=rf"process {child.pid}, started at {began}"):
        run("01")
    assert child.poll() is None
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert not alive(family)
    with pytest.raises(FlowError, match="01_Second needs"):  # the folder is free again
        run("01")


def start_run(run, modules, *sources):
    """The first step, in a process of its own, as soon as its notebook has started `sleep`."""
    write_notebook(modules, FIRST, *sources)
    script = SCRIPT.format(tests=str(Path(__file__).parent), artifacts=str(run.artifacts))
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return child, wait_for_family(child, "sleep")


BUSY = (
    "import subprocess, time; subprocess.Popen(['sleep', '601'], start_new_session=True); "
    "time.sleep(600)"
)
STUBBORN = (
    "import subprocess, time; subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 602; sleep "
    "602'],"
)
STUBBORN += " start_new_session=True); time.sleep(600)"


def test_a_second_interrupt_does_not_cut_off_the_end_of_what_was_started(run, modules):
    child, family = start_run(run, modules, STUBBORN)
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert errors.count(b"\nKeyboardInterrupt\n") == 1
    assert not alive(family)


def test_what_a_killed_run_leaves_is_ended_by_the_next_one(run, modules):
    child, family = start_run(run, modules, STUBBORN)
    child.kill()
    child.communicate()
    assert alive(family), (
        "the stubborn process should have outlived the kill: else this test shows nothing"
    )
    write_notebook(modules, FIRST, WRITE.format(name="first", text="1"))
    shown = run("00")
    assert re.search(r"Ended \d+ process", shown)
    assert not alive(family)
    assert "00_First: finished" in shown


def test_a_notebook_cut_off_while_it_is_written_is_not_left(run):
    output = run.artifacts / "01.ipynb"
    run.artifacts.mkdir()
    with notebooks._whole(output) as running:
        running.write_text('{"cells": [')
    assert not output.exists() and not running.exists()
    with notebooks._whole(output) as running:
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), running)
    assert output.exists() and not running.exists()


RESULT = Step("02_Result", "notebook", ("model",), (), ("results/base/figure.json",))
KEEP = """from pathlib import Path
from model_serve_flow.flow.flow import Flow
path = Flow.open(profile, overrides, artifacts).workspace.results("base") / "figure.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(path.read_text() + "kept" if path.exists() else "measured")"""


def test_results_are_kept_for_a_step_that_goes_on_and_removed_where_they_changed_or_by_force(
    run, modules, inline, monkeypatch
):
    monkeypatch.setattr(sys.modules[__name__], "FIRST", RESULT)
    figure = run.root / "results" / "base" / "figure.json"
    write_notebook(modules, RESULT, KEEP, "raise RuntimeError('interrupted')")
    with pytest.raises(FlowError, match="interrupted"):
        run("02")
    assert figure.read_text() == "measured"
    write_notebook(modules, RESULT, KEEP)
    run("02")
    assert figure.read_text() == "measuredkept"
    figure.write_text("edited")
    run("02")
    assert figure.read_text() == "measured"
    run("02", force=True)
    assert figure.read_text() == "measured"


def test_a_kernel_ended_while_it_compresses_shows_the_log_and_gets_advice_on_memory(
    run, modules, monkeypatch
):
    step = Step("03_Compress", "compress", ("model",), (), ("data/first.txt",))
    monkeypatch.setattr(sys.modules[__name__], "FIRST", step)
    environment = environments.environment("compress")
    environment.folder.symlink_to(environments.environment("notebook").folder)
    environments._register_kernel(environment)
    write_notebook(modules, step, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(FlowError, match=r"outside its cells(.|\n)*DeadKernelError") as caught:
        run("03")
    for key in ("calibration.samples", "calibration.max_sequence_length"):
        assert key in caught.value.hint


def alive(processes):
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def wait_for_family(child, name):
    """Every process below `child`, once one called `name` is among them."""
    for _ in range(300):
        family = psutil.Process(child.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):  # one that ended in between: look again
            if any(process.name() == name for process in family):
                return family
        time.sleep(0.1)
    raise AssertionError(f"{name} did not start")


def test_steps_read_what_earlier_steps_write():
    written = set()
    for step in STEPS:
        assert set(step.inputs) <= written, step.module
        written |= set(step.outputs)


@pytest.mark.parametrize(
    ("absent", "numbers"),
    [
        ([], "00 01 02 03 04 05 06 07"),
        (["accuracy"], "00 02 03 05 06 07"),
        (["performance"], "00 01 03 04 06 07"),
        (["deploy"], "00 01 02 03 04 05 06"),
        (["candidates"], "00 01 02"),
        (["candidates", "calibration", "accuracy", "deploy"], "00 02"),
    ],
)
def test_the_steps_follow_from_the_sections_of_the_profile(tmp_path, absent, numbers):
    flow = Flow.open("ci", dict.fromkeys(absent), tmp_path)
    steps = steps_of(flow.config)
    assert " ".join(step.number for step in steps) == numbers
    listed = plan(flow)
    assert all((f"\n{step.module}  (" in listed) == (step in steps) for step in STEPS)
    written = {path for step in steps for path in expand(step.outputs, flow.config)}
    read = {path for step in steps for path in expand(step.inputs, flow.config)}
    assert read <= written, "a step reads what no step of this profile writes"


def test_a_step_that_the_profile_lacks_is_refused_with_what_it_needs():
    steps = steps_of(load_profile("ci", {"accuracy": None}))
    with pytest.raises(FlowError, match="no 04_Compressed_Accuracy: it needs candidates and acc"):
        select(["04"], steps=steps)


def outputs(module, overrides):
    return expand(
        next(step for step in STEPS if step.module == module).outputs, load_profile("ci", overrides)
    )


def test_a_step_promises_only_the_measurements_that_the_profile_asks_for():
    base, candidate = "results/base/", "results/w8a8-int8/"
    whole, bare = (
        outputs("01_Base_Accuracy", {}),
        {"accuracy.again": None, "accuracy.distribution": None},
    )
    assert whole == [
        base + f"{name}.json"
        for name in ("accuracy", "distribution", "accuracy_again", "distribution_again")
    ]
    assert outputs("01_Base_Accuracy", bare) == [base + "accuracy.json"]
    assert outputs("01_Base_Accuracy", {"accuracy.again": None}) == whole[:2]
    assert outputs("01_Base_Accuracy", {"accuracy.distribution": None}) == [whole[0], whole[2]]
    assert candidate + "distribution.json" in outputs("04_Compressed_Accuracy", {})
    assert candidate + "distribution.json" not in outputs("04_Compressed_Accuracy", bare)
    assert candidate + "accuracy.json" in outputs("04_Compressed_Accuracy", bare)


def test_held_out_text_of_the_hub_needs_the_hub():
    dataset = {
        "path": "Salesforce/wikitext",
        "name": "wikitext-2-raw-v1",
        "split": "test",
        "column": "text",
    }
    assert not needs_hub(load_profile("ci"))
    assert needs_hub(load_profile("ci", {"accuracy.distribution.dataset": dataset}))


def test_a_second_candidate_does_not_measure_the_base_again(tmp_path):
    """01 and 02 have the same fingerprint, so they are skipped; 04 and 05 have another."""
    more = [
        {
            "name": "w8a8-int8",
            "recipe": {"scheme": "W8A8", "algorithm": "rtn", "smoothing_strength": 0.8},
        },
        {
            "name": "w4a16-int4",
            "recipe": {"scheme": "W4A16", "algorithm": "gptq", "group_size": 64},
        },
        {"name": "one-more", "recipe": {"scheme": "W8A8", "algorithm": "rtn"}},
    ]

    def fingerprints(candidates):
        session = Due(Flow.open("ci", {"candidates": candidates}, tmp_path))
        for step in STEPS:
            for path in expand(step.inputs, session.flow.config):
                full = session.flow.workspace.root / path
                file = full if full.suffix else full / "file"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("the same")
        return {step.number: session.fingerprint(step) for step in STEPS}

    before, after = fingerprints(more[:2]), fingerprints(more)
    assert {number for number in before if before[number] == after[number]} == {"00", "01", "02"}


def test_force_drops_the_answers_of_its_own_measurements_only(run):
    """A report made anew must not cost an interrupted measurement what it was answered."""
    step = Step(
        "01_First",
        "notebook",
        ("model",),
        (),
        ("results/base/accuracy.json", "results/base/accuracy_again.json"),
    )
    names = [f"{name}-{'0' * 16}_rank0.db" for name in ("base", "base_again", "w8a8-int8")]
    session = runner._Session(Flow.open("cpu-smollm2", {}, run.artifacts), environments.ensure)
    folder = session.flow.workspace.root / "cache" / "lm-eval"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    session.forget(FIRST, force=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    session.forget(step, force=True)
    assert [path.name for path in folder.iterdir()] == names[2:]
