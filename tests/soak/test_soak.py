import json
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import soak
from comparable import comparable, first_differences

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile
from model_serve_flow.run.steps import STEPS
from model_serve_flow.system.processes import RUN_VARIABLE

SECONDS = {step.module: 10.0 * (1 + index) for index, step in enumerate(STEPS)}
CI = load_profile("ci")


def step(number):
    return next(step for step in STEPS if step.number == number)


# --- The plan ---


def test_a_plan_is_the_same_for_a_seed_and_another_for_another():
    assert soak.plan(20, 0, SECONDS) == soak.plan(20, 0, SECONDS)
    assert soak.plan(20, 0, SECONDS) != soak.plan(20, 1, SECONDS)
    assert soak.plan(40, 0, SECONDS)[:20] == soak.plan(20, 0, SECONDS)


def test_every_victim_has_its_turn_inside_a_step_and_only_a_step_with_a_server_loses_one():
    points = soak.plan(60, 3, SECONDS)
    assert [point.number for point in points] == list(range(1, 61))
    assert set(Counter(point.victim.name for point in points).values()) == {10}
    assert all(0 < point.seconds < SECONDS[point.step.module] for point in points)
    assert {point.step.environment for point in points if point.victim.name == "vLLM"} == {"serve"}


def test_a_long_step_is_hit_more_often():
    hits = Counter(
        point.step.module
        for point in soak.plan(600, 0, dict.fromkeys(SECONDS, 1.0) | {"03_Compress": 50.0})
    )
    assert hits["03_Compress"] > 300


# --- What must be the same ---

ACCURACY = {
    "engine": {"version": "1", "start_seconds": 4.2, "peak_memory_bytes": 5, "kernels": ["Int8"]},
    "protocol": {"performance": {"seconds": 4.0, "slo": {"ttft_ms": 600}}},
    "seconds": 100.0,
    "points": [
        {"concurrency": 1, "ttft_ms": {"mean": 3.0}, "output_tokens_per_s": 9.0, "valid": True}
    ],
    "tasks": {"mmlu": {"items": [{"id": "a", "answer": "B", "acc": 1.0}]}},
    "checks": [{"detail": "first token after 34 ms: Red", "milliseconds": 3.0, "ok": True}],
    "written_at": "2026",
}


def changed(**values):
    document = json.loads(json.dumps(ACCURACY))
    for place, value in values.items():
        *parents, last = place.split("__")
        target = document
        for key in parents:
            target = target[int(key) if key.isdigit() else key]
        target[last] = value
    return document


@pytest.mark.parametrize(
    "place",
    [
        {"seconds": 7.0},
        {"written_at": "2027"},
        {"engine__start_seconds": 1.0},
        {"engine__peak_memory_bytes": 1},
        {"points__0__ttft_ms": {"mean": 99.0}},
        {"points__0__output_tokens_per_s": 1.0},
        {"checks__0__milliseconds": 1.0},
        {"checks__0__detail": "first token after 5.5 ms: Red"},
    ],
)
def test_times_and_speed_do_not_count(place):
    assert changed(**place) != ACCURACY
    assert comparable(changed(**place)) == comparable(ACCURACY)


@pytest.mark.parametrize(
    "place",
    [
        {"tasks__mmlu__items__0__acc": 0.0},
        {"tasks__mmlu__items__0__answer": "A"},
        {"tasks__mmlu__items": []},
        {"protocol__performance__seconds": 5.0},
        {"protocol__performance__slo": {"ttft_ms": 700}},
        {"engine__kernels": []},
        {"points__0__valid": False},
        {"points__0__concurrency": 2},
        {"checks__0__detail": "first token after 34 ms: Blue"},
    ],
)
def test_items_protocol_and_what_was_found_count(place):
    assert comparable(changed(**place)) != comparable(ACCURACY)
    [difference, *_] = first_differences(comparable(ACCURACY), comparable(changed(**place)))
    assert "instead of" in difference


def test_differences_name_the_places_and_stop_after_a_few():
    assert first_differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
    assert first_differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == [
        "a.b: 2 instead of 1",
        "c: 3 instead of nothing",
    ]
    assert first_differences({"a": 1}, {"a": True}) == ["a: True instead of 1"]
    assert first_differences({"a": list(range(9))}, {"a": []})[-1] == "and 4 more differences"


# --- Copies and files ---


def write(root, *paths, text="{}"):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def test_a_copy_has_nothing_that_could_help_the_step(tmp_path):
    reference, copy = tmp_path / "reference", tmp_path / "copy"
    made, kept = "results/base/accuracy.json", "results/base/performance.json"
    weights = "models/base/model.safetensors"
    write(
        reference,
        made,
        kept,
        weights,
        "models/base/config.json",
        "results/base/raw/lm-eval.json",
        "manifest.json",
    )
    write(
        reference,
        "cache/lm-eval.db",
        "logs/01.log",
        "notebooks/01.ipynb",
        ".run.lock",
        "report/charts/speed.svg",
    )
    soak.copy_workspace(reference, copy, [made])
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert files == {
        kept,
        weights,
        "models/base/config.json",
        "manifest.json",
        "report/charts/speed.svg",
    }
    assert (copy / weights).samefile(reference / weights)
    assert not (copy / kept).samefile(reference / kept), (
        "an edit in the copy would change the reference"
    )


def test_a_copy_leaves_out_whole_folders_that_the_step_makes(tmp_path):
    write(
        tmp_path / "reference",
        "models/base/model.safetensors",
        "models/w8/model.safetensors",
        "data/a.jsonl",
    )
    soak.copy_workspace(tmp_path / "reference", tmp_path / "copy", ["models/w8", "data"])
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == [
        "base",
        "model.safetensors",
        "models",
    ]


def test_half_written_and_left_over_files_are_named(tmp_path):
    write(tmp_path, "manifest.json", "results/base/accuracy.json")
    assert soak.broken_files(tmp_path) == soak.unfinished_files(tmp_path) == []
    write(tmp_path, "results/base/raw/guidellm.json", text='{"a": [1, ')
    [broken] = soak.broken_files(tmp_path)
    assert broken.startswith("results/base/raw/guidellm.json is half-written")
    write(
        tmp_path,
        "results/base/.accuracy.json.x1.tmp",
        "models/.w8.partial/config.json",
        "models/.w8.old/config.json",
    )
    write(tmp_path, "notebooks/.01.running.ipynb", "models/base/.source.json")
    assert [line.split()[0] for line in soak.unfinished_files(tmp_path)] == [
        "models/.w8.old",
        "models/.w8.partial",
        "notebooks/.01.running.ipynb",
        "results/base/.accuracy.json.x1.tmp",
    ]


def test_content_is_digests_of_checkpoints_and_documents_without_times(tmp_path):
    models = [f"models/{candidate.name}" for candidate in CI.candidates]
    write(
        tmp_path,
        *(f"{model}/{name}" for model in models for name in ("model.safetensors", "config.json")),
    )
    results = [f"results/{candidate.name}/compression.json" for candidate in CI.candidates]
    write(tmp_path, *results, text='{"seconds": 3, "scheme": "W8A8"}')
    before = soak.content(tmp_path, step("03"), CI)
    write(tmp_path, *results, text='{"seconds": 9, "scheme": "W8A8"}')
    assert soak.content(tmp_path, step("03"), CI) == before
    write(tmp_path, f"{models[0]}/model.safetensors", text="other weights")
    [difference] = first_differences(before, soak.content(tmp_path, step("03"), CI))
    assert difference.startswith(f"{models[0]}/model.safetensors: ")


def test_a_missing_result_is_a_difference(tmp_path):
    write(tmp_path, "results/base/performance.json", text='{"points": [{"concurrency": 1}]}')
    before = soak.content(tmp_path, step("02"), CI)
    (tmp_path / "results/base/performance.json").unlink()
    assert first_differences(before, soak.content(tmp_path, step("02"), CI))


def test_a_comparison_of_the_same_results_must_be_the_same_to_the_last_figure(tmp_path):
    write(tmp_path, "report/comparison.json", text='{"capacity": {"streams": 2}}')
    before = soak.content(tmp_path, step("06"), CI)
    write(tmp_path, "report/comparison.json", text='{"capacity": {"streams": 3}}')
    assert first_differences(before, soak.content(tmp_path, step("06"), CI))


# --- Processes ---


@pytest.fixture
def run(tmp_path):
    """A stand-in for a run: a process in a session of its own."""
    run = soak.Run.__new__(soak.Run)
    run.seen = set()
    run.root, run.output = tmp_path / "ci", tmp_path / "output.txt"
    run.output.write_text("01_Base_Accuracy: started\n")
    run.child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    yield run
    run.end()


def start_marked(root, *arguments):
    code = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, *arguments]
    environment = {RUN_VARIABLE: f"{root}#1"}
    child = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    return child


def strike(run, victim, seconds=0.0):
    point = soak.Point(1, step("01"), seconds, next(v for v in soak.VICTIMS if v.name == victim))
    return soak.strike(run, point)


def test_only_the_server_of_this_run_is_hit(run, tmp_path):
    with (
        start_marked(run.root, soak.SERVER_MODULE) as server,
        start_marked(run.root, soak.KERNEL) as kernel,
        start_marked(tmp_path / "ci2", soak.SERVER_MODULE) as of_another_run,
    ):
        assert strike(run, "vLLM") is not None
        assert server.wait(5) == -9
        assert kernel.poll() is None and of_another_run.poll() is None and run.child.poll() is None
        assert {process.pid for process in run.alive()} == {kernel.pid, run.child.pid}
        of_another_run.kill()
        run.end()
        assert kernel.poll() is not None and run.child.poll() is not None


def test_a_fault_comes_at_its_time(run):
    started = time.monotonic()
    assert strike(run, "runner", 0.5) == pytest.approx(time.monotonic() - started, abs=0.3)
    assert time.monotonic() - started >= 0.5
    assert run.child.wait(5) == -9


def test_a_run_that_ends_before_the_fault_was_not_hit(run):
    run.child.kill()
    assert strike(run, "runner", 5.0) is None


def test_a_run_that_ends_before_its_server_starts_was_not_hit(run):
    run.child.kill()
    run.child.wait()
    assert strike(run, "vLLM") is None


def test_what_is_left_of_a_run_is_named_and_ended(run):
    with start_marked(run.root, "orphan"):
        run.child.kill()
        seconds, left = soak.gone_after(run, 0.5)
        assert seconds is None
        assert len(left) == 1 and "orphan" in left[0]
        assert not run.alive()


def test_a_run_that_is_gone_is_seen_at_once(run):
    run.child.kill()
    seconds, left = soak.gone_after(run, 5)
    assert seconds < 2 and not left


def test_a_traceback_of_the_runner_is_told_from_that_of_a_notebook():
    lines = (
        'Traceback (most recent call last):\n  File "<frozen runpy>", line 198, in _run\n    '
        "main()\n"
    )
    assert soak.UNCAUGHT.search(
        f'text\n{lines}  File "/x/model_serve_flow/cli.py", line 3, in main\n'
    )
    assert not soak.UNCAUGHT.search(f'text\n{lines}  File "/x/papermill/cli.py", line 3, in main\n')


# --- The report ---


def outcome(number, **values):
    return soak.Outcome(number, "01_Base_Accuracy", "Ctrl-C", **values)


def test_the_report_counts_what_survived_and_names_what_did_not():
    good = outcome(
        1, gone_after_seconds=2.0, recovery_seconds=10.0, repeated_percent=20.0, finished_before=2
    )
    bad = outcome(
        2,
        gone_after_seconds=None,
        recovery_seconds=30.0,
        problems=["exit status 1 instead of (130,)"],
    )
    figures = soak.totals([good, bad])
    assert (figures["points"], figures["survived"], figures["finished_results_kept"]) == (2, 1, 2)
    assert figures["recovery_seconds"] == {"median": 20.0, "max": 30.0}
    assert figures["ctrl_c_gone_after_seconds"] == {"median": 2.0, "max": 2.0}
    text = soak.table([good, bad])
    assert "Survived 1 of 2." in text
    assert "- point 2: exit status 1 instead of (130,)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and len({row.count("|") for row in rows}) == 1


def test_a_reference_that_is_not_whole_is_refused(tmp_path):
    write(tmp_path / "ci", "manifest.json", text='{"steps": {"00_Setup": {"seconds": 3}}}')
    with pytest.raises(FlowError, match="not the whole of an undisturbed run"):
        soak.make_reference("ci", tmp_path)


def test_a_reference_that_fails_is_the_reason_to_stop(tmp_path, monkeypatch, capsys):
    failed = SimpleNamespace(returncode=1)

    class Failing:
        text, child = "no memory", failed
        wait = end = lambda self: None

        def __init__(self, *arguments):
            pass

    monkeypatch.setattr(soak, "Run", Failing)
    monkeypatch.setattr(sys, "argv", ["soak.py", "--artifacts", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        soak.main()
    assert caught.value.code == 2
    assert "The undisturbed run failed" in capsys.readouterr().err
