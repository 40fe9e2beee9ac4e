"""What a long step says of itself, and what the terminal makes of it."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from model_serve_flow.run import progress
from model_serve_flow.run.progress import Progress
from model_serve_flow.system import live
from model_serve_flow.system.live import Live


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(live.time, "monotonic", clock)
    return clock


@pytest.fixture
def path(tmp_path, monkeypatch):
    """The file that the runner reads, and a process that has reported nothing yet."""
    monkeypatch.setenv(live.VARIABLE, str(tmp_path / ".live.json"))
    monkeypatch.setattr(live, "_reporter", live._Reporter())
    return tmp_path / ".live.json"


def test_the_line_names_the_measurement_the_share_done_and_the_expected_end(path, clock):
    live.report("base: lm-eval", 0, 618, "requests")
    assert str(live.read(path)) == "base: lm-eval, 0 of 618 requests"
    clock.now += 60
    live.report("base: lm-eval", 206, 618, "requests")
    assert str(live.read(path)) == "base: lm-eval, 206 of 618 requests, about 2 min left"
    clock.now += 30  # no news for half a minute: the end comes nearer all the same
    assert str(live.read(path)) == "base: lm-eval, 206 of 618 requests, about 90 s left"
    clock.now += 300
    assert str(live.read(path)) == "base: lm-eval, 206 of 618 requests, soon over"


def test_the_rate_is_that_since_this_measurement_began(path, clock):
    live.report("base: lm-eval", 0, 600, "requests")
    clock.now += 6000
    live.report("base: lm-eval", 0, 20, "texts")
    clock.now += 10
    live.report("base: lm-eval", 10, 20, "texts")
    assert live.read(path).seconds_left() == pytest.approx(10)


def test_what_was_done_before_does_not_count_for_the_rate(path, clock):
    live.report("base: load 8", 500, 600)
    assert live.read(path).seconds_left() is None
    clock.now += 10
    live.report("base: load 8", 550, 600)
    assert live.read(path).seconds_left() == pytest.approx(10)


def test_a_part_of_a_measurement_takes_its_name(path):
    live.report("base, again: lm-eval", 0, 0)
    assert str(live.read(path)) == "base, again: lm-eval"
    live.report(None, 0, 20, "texts")
    assert str(live.read(path)) == "base, again: lm-eval, 0 of 20 texts"


def test_what_is_over_is_not_shown(path):
    live.report("base: load 1", 0, 3)
    live.report("base: load 1", 3, 3)
    assert path.exists() and live.read(path) is None


def test_most_reports_write_nothing_and_the_last_one_always_does(path, clock, monkeypatch):
    written = []
    write = live._Reporter.write
    monkeypatch.setattr(live._Reporter, "write", lambda *a: written.append(a[2].done) or write(*a))
    for done in range(1001):
        live.report("base: lm-eval", done, 1000)
        clock.now += 0.01
    assert written[0] == 0 and written[-1] == 1000
    assert len(written) == pytest.approx(10 / live.WRITE_SECONDS, abs=2)


def test_without_a_runner_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(live.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    live.report("base: lm-eval", 0, 10)
    assert list(tmp_path.iterdir()) == [] and live.read(tmp_path / ".live.json") is None


def test_a_file_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(live.VARIABLE, str(tmp_path / "gone" / ".live.json"))
    for done in range(11):
        live.report("base: lm-eval", done, 10)
    said = capsys.readouterr().out
    assert (
        said.count("note:") == 1
        and "gone/.live.json cannot be written (No such file or directory)" in said
    )


def test_the_reader_never_meets_half_a_file(path, monkeypatch):
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)
    live.report("begin", 0, 500)

    def work(number):
        for done in range(100):
            live.report(f"{number} " * (done % 50 + 1), done, 500)

    with ThreadPoolExecutor(4) as pool:
        work_done = [pool.submit(work, number) for number in range(4)]
        while not all(future.done() for future in work_done):
            assert live.read(path) is not None
        assert [future.result() for future in work_done] == [None] * 4
    assert [entry.name for entry in path.parent.iterdir()] == [".live.json"]


def test_the_runner_leaves_no_file_even_of_a_process_that_was_killed_while_it_wrote(path):
    live.report("of an earlier step", 0, 0)
    with live.fresh(path):
        assert live.read(path) is None
        path.with_name(".live.json.tmp").write_text('{"wha')
        live.report("killed", 0, 0)
    assert list(path.parent.iterdir()) == []


def test_times_of_another_process_are_on_the_same_clock(path):
    script = (
        "from model_serve_flow.system import live; live.report('a', 0, 10); live.report('a', 5, "
        "10, 'x')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    found = live.read(path)
    assert 0 <= live.time.monotonic() - found.at < 60
    assert json.loads(path.read_text())["unit"] == "x"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "5 s"), (42, "40 s"), (58, "60 s"), (89, "90 s"), (125, "2 min"), (5500, "1.5 h")],
)
def test_durations_are_as_coarse_as_they_are_known(seconds, text):
    assert live.duration(seconds) == text


def shown(step, width=120, terminal=False):
    """What the console shows while `step` uses the progress of one module."""
    console = Console(record=True, force_terminal=terminal, width=width)
    with Progress(console, ["01_Base_Accuracy"]) as lines:
        lines.start("01_Base_Accuracy", "preparing the environment")
        step(lines)
    return console.export_text()


DOING = Live("base: lm-eval", 206, 618, "requests", 0, 1000.0, 1060.0)


def test_without_a_terminal_there_is_one_line_every_30_seconds(clock):
    clock.now = 1060.0

    def step(lines):
        for _ in range(140):  # 70 seconds
            lines.cells(4, 10, DOING)
            clock.now += 0.5

    lines = [line for line in shown(step).splitlines() if "lm-eval" in line]
    assert lines == [
        "01_Base_Accuracy: 30 s, cell 4 of 10, base: lm-eval, 206 of 618 requests, about 90 s left",
        "01_Base_Accuracy: 60 s, cell 4 of 10, base: lm-eval, 206 of 618 requests, about 60 s left",
    ]
    assert progress.PLAIN_SECONDS == 30


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_the_whole_line(clock, width):
    clock.now = 1060.0

    def step(lines):
        lines.cells(4, 10, DOING)
        lines.lines.refresh()

    text = " ".join(shown(step, width, terminal=True).split())
    for part in ("cell 4 of 10", "lm-eval", "206 of 618", "about 2 min left"):
        assert part in text
