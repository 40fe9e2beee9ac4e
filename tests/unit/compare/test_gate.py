"""`run --gate` and `report --gate`: the exit code is the verdict,
and nothing else is taken for one.
"""

import pytest
from click.testing import CliRunner

from model_serve_flow.cli import main
from model_serve_flow.compare.gate import gate_verdict
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.run import runner


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(main, arguments)


class Candidate:
    def __init__(self, name, verdict):
        self.name, self.verdict = name, verdict


def comparison(**verdicts):
    candidates = tuple(Candidate(*pair) for pair in verdicts.items())
    return Comparison.model_construct(candidates=candidates)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("DO NOT SHIP",), "DO NOT SHIP"),
        (("INCONCLUSIVE", "DO NOT SHIP"), "INCONCLUSIVE"),
        (("DO NOT SHIP", "SHIP"), "SHIP"),
    ],
)
def test_the_best_candidate_counts(verdicts, expected):
    named = {f"candidate{number}": verdict for number, verdict in enumerate(verdicts)}
    assert gate_verdict(comparison(**named)) == expected


def test_the_candidate_that_would_be_deployed_counts():
    assert gate_verdict(comparison(good="SHIP", bad="DO NOT SHIP"), "bad") == "DO NOT SHIP"


@pytest.fixture
def finished(monkeypatch):
    """A run that ends, with a report that is current or not, and these verdicts."""

    def finish(*, current=True, **verdicts):
        monkeypatch.setattr(runner, "run", lambda *_, **__: None)
        monkeypatch.setattr(runner, "report_is_current", lambda _: current)
        monkeypatch.setattr("model_serve_flow.cli._show_result", lambda _: None)
        found = comparison(**verdicts)
        monkeypatch.setattr("model_serve_flow.flow.workspace.Workspace.comparison", lambda _: found)

    return finish


@pytest.mark.parametrize("command", ["run", "report"])
@pytest.mark.parametrize(
    ("verdict", "code"), [("SHIP", 0), ("DO NOT SHIP", 10), ("INCONCLUSIVE", 20)]
)
def test_the_exit_code_is_the_verdict_only_with_the_flag(invoke, finished, command, verdict, code):
    finished(w8a8=verdict)
    assert invoke(command, "--profile", "ci", "--gate").exit_code == code
    assert invoke(command, "--profile", "ci").exit_code == 0


@pytest.mark.parametrize("command", ["run", "report"])
def test_without_a_current_report_there_is_no_verdict(invoke, finished, command):
    finished(current=False, w8a8="SHIP")
    result = invoke(command, "--profile", "ci", "--gate")
    assert result.exit_code == 1
    assert "no verdict" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("run", "--profile", "nothing"), ("report", "--set", "seed=x"), ("run", "--only", "12")],
)
def test_a_gate_ends_with_2_on_bad_input(invoke, arguments):
    assert invoke(*arguments, "--gate").exit_code == 2


def test_a_crash_of_a_gate_is_1(invoke, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_, **__: 1 / 0)
    assert invoke("run", "--profile", "ci", "--gate").exit_code == 1
