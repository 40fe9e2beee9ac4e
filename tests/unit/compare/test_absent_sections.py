"""A profile without a section: what was not measured is said, and never speaks for a candidate."""

import factories
import pytest

from model_serve_flow.compare.comparison import compare_workspace
from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.sections import sections
from model_serve_flow.report.tables import summary
from model_serve_flow.system.files import write_json

# absent section -> the results of every model
RESULTS = {"accuracy": ["performance"], "performance": ["accuracy", "distribution"]}
CANDIDATES = ("w8a8-int8", "w4a16-int4")


@pytest.fixture
def compared(tmp_path):
    """Compares a workspace that has only the results that the profile asks for."""

    def of(absent):
        flow = Flow.open("cpu-smollm2", {absent: None}, tmp_path)
        for name in ("base", *CANDIDATES):
            folder = flow.workspace.results(name)
            for kind in RESULTS[absent]:
                write_json(folder / f"{kind}.json", getattr(factories, kind)(name))
            if name != "base":
                write_json(folder / "compression.json", factories.compression(name))
        if absent == "performance":
            folder = flow.workspace.results("base")
            write_json(folder / "accuracy_again.json", factories.accuracy_again())
            write_json(folder / "distribution_again.json", factories.distribution_again())
        return compare_workspace(flow)

    return of


def section(comparison, title):
    return next(one for one in sections(comparison) if one.title == title)


def test_without_accuracy_no_candidate_is_decided_and_speed_is_still_compared(compared):
    comparison = compared("accuracy")
    assert [c.verdict for c in comparison.candidates] == ["INCONCLUSIVE"] * 2
    assert all("no section accuracy" in c.reasons[0] for c in comparison.candidates)
    assert comparison.candidates[0].speed.reading == "FASTER"
    assert list(comparison.protocol) == list(comparison.protocol_hash) == ["performance"]
    told = section(comparison, "Accuracy")
    assert told.notes[0].text == "Not measured: the profile has no section accuracy."
    assert not told.tables and section(comparison, "Speed under the same load").tables
    assert "Which answers changed" not in [one.title for one in sections(comparison)]


def test_without_performance_accuracy_decides_alone_and_the_report_says_so(compared):
    comparison = compared("performance")
    assert [c.verdict for c in comparison.candidates] == ["SHIP", "DO NOT SHIP"]
    assert any("no section performance" in reason for reason in comparison.candidates[0].reasons)
    assert list(comparison.protocol) == ["accuracy"]
    told = section(comparison, "Speed under the same load")
    assert told.notes[0].text == "Not measured: the profile has no section performance."
    cells = {row[0].text: row[2].text for row in summary(comparison).rows}
    assert cells["Faster than the base?"] == "not measured"
