"""What a comparison from files says, and what its files hold."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import result_files as files
from click.testing import CliRunner

from model_serve_flow.cli import main
from model_serve_flow.compare.differences import compare_suite, compare_task
from model_serve_flow.compare.pairs import pair
from model_serve_flow.compare.tiers import Tiers
from model_serve_flow.compare.verdict import decide, with_items_to_settle
from model_serve_flow.errors import BadInput
from model_serve_flow.flow.profile import Verdict
from model_serve_flow.flow.results.measured import AccuracyResult, protocol_hash
from model_serve_flow.from_files.decision import compare_sides
from model_serve_flow.from_files.outputs import write_html, write_junit, write_markdown
from model_serve_flow.from_files.paces import compare_loads
from model_serve_flow.from_files.recognise import read_side
from model_serve_flow.from_files.rules import Rules
from model_serve_flow.from_files.sides import Load
from model_serve_flow.system.files import read_result

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = ROOT / "examples" / "model-serve-flow" / "assets" / "sample-results"
BASE, CANDIDATE = SAMPLES / "base", SAMPLES / "candidate"
N = 2000


def compared(base, candidate, **rules):
    return compare_sides(read_side(base), read_side(candidate), Rules(**rules))


@pytest.fixture(scope="module")
def sample():
    return compared(BASE, CANDIDATE)


def test_the_verdict_and_every_number_are_those_of_the_flow(sample):
    margins = Verdict(suite_margin_points=2.0)  # one task decides
    base, candidate = (
        read_result(folder / "accuracy.json", AccuracyResult) for folder in (BASE, CANDIDATE)
    )
    pairs = [pair(name, task, candidate.tasks[name]) for name, task in base.tasks.items()]
    differences = {one.task: compare_task(one, margins, 0) for one in pairs}
    differences, suite = with_items_to_settle(differences, compare_suite(differences, margins))
    assert (sample.verdict, sample.reasons, ()) == decide(differences, suite)
    assert {name: task.metrics for name, task in sample.tasks.items()} == differences
    assert sample.suite == suite


def test_gross_loss_is_the_share_of_right_answers_that_broke(tmp_path):
    base = files.scores(tmp_path / "a.csv", files.binary(N, 1000))
    found = compared(base, files.scores(tmp_path / "b.csv", files.binary(N, 1000, 50, 50)))
    difference = found.tasks["scores"].difference
    loss = difference.gross_loss
    assert difference.difference == 0
    assert (difference.flips.right_to_wrong, loss.right, loss.percent) == (50, 1000, 5.0)
    assert loss.ci95[0] < 5 < loss.ci95[1]


def test_a_continuous_score_has_no_gross_loss_and_is_decided_by_bootstrap(tmp_path):
    values = [0.2 + 0.6 * (number % 7) / 6 for number in range(300)]
    base = files.scores(tmp_path / "a.csv", values)
    other = files.scores(
        tmp_path / "b.csv", [value + 0.001 * (n % 3 - 1) for n, value in enumerate(values)]
    )
    found = compared(base, other)
    assert found.verdict == "SHIP"
    assert found.tasks["scores"].difference.gross_loss is None
    assert found.tasks["scores"].difference.method.startswith("BCa")


def test_too_few_items_do_not_decide(tmp_path):
    base = files.scores(tmp_path / "a.csv", [0.5, 0.75, 0.25])
    found = compared(base, files.scores(tmp_path / "b.csv", [0.5, 0.75, 0.3]))
    assert found.verdict == "INCONCLUSIVE"
    assert found.tasks["scores"].difference.too_few == 10


def test_a_lost_task_at_which_the_base_is_weak_withholds_ship_and_is_named(tmp_path):
    strong = files.binary(N, 1400)
    weak = [1.0 if number < 20 else 0.0 for number in range(N)]  # 1 %: too weak to lose 2 points
    for name, values in (("one", weak), ("two", [0.0] * N)):
        files.scores(tmp_path / name / "gsm8k.csv", values)
        files.scores(tmp_path / name / "arc.csv", strong)
    found = compared(tmp_path / "one", tmp_path / "two")
    assert found.verdict == "INCONCLUSIVE"
    assert found.sentence == "INCONCLUSIVE: gsm8k cannot decide, and shows a loss all the same."


def test_all_advisory_decides_nothing(tmp_path):
    one, two = (files.scores(tmp_path / f"{n}.csv", files.binary(N, 1400)) for n in "ab")
    found = compared(one, two, tiers=Tiers(advisory=("scores",)))
    assert found.sentence == "INCONCLUSIVE: every task is advisory, so none decides."


def test_clusters_widen_the_interval(tmp_path):
    """One cluster of 20 broke as a whole: as single items that would be a sure loss."""
    clusters = [f"c{number // 20}" for number in range(N)]
    values = files.binary(N, N), files.binary(N, N, 20)
    alone = compared(*(files.scores(tmp_path / f"{i}.csv", v) for i, v in enumerate(values)))
    paths = [
        files.scores(tmp_path / f"c{i}.csv", v, cluster=clusters) for i, v in enumerate(values)
    ]
    together = compared(*paths)
    width = [
        d.ci95[1] - d.ci95[0]
        for d in (alone.tasks["scores"].difference, together.tasks["scores"].difference)
    ]
    assert width[1] > 2 * width[0]
    assert together.tasks["scores"].difference.clusters.decide


def clustered(path, clusters):
    columns = {} if clusters is None else {"cluster": clusters}
    return files.scores(path, files.binary(100, 60), **columns)


TENS = [f"c{number // 10}" for number in range(100)]


@pytest.mark.parametrize(
    ("base", "candidate", "reason"),
    [
        (["a", "b"] * 50, ["a", "b"] * 50, "it has 2 values, and at least 10 are needed"),
        (["", *TENS[1:]], ["", *TENS[1:]], "1 of 100 items of the base have none"),
        (range(100), range(100), "it has 100 values for 100 items, fewer than 2 items each"),
        (None, TENS, "only the candidate has it"),
    ],
)
def test_clusters_that_are_ignored_are_told_with_the_reason(tmp_path, base, candidate, reason):
    found = compared(clustered(tmp_path / "a.csv", base), clustered(tmp_path / "b.csv", candidate))
    assert found.tasks["scores"].difference.clusters is None
    (note,) = found.notes
    assert note.startswith("Task scores: the column cluster is ignored") and reason in note


def test_clusters_that_are_used_need_no_note(tmp_path):
    base = clustered(tmp_path / "a.csv", TENS)
    for candidate in (TENS, None):  # the base's column counts
        found = compared(base, clustered(tmp_path / "b.csv", candidate))
        assert found.tasks["scores"].difference.clusters.count == 10
        assert not found.notes


def test_other_clusters_of_the_candidate_are_refused(tmp_path):
    base, other = clustered(tmp_path / "a.csv", TENS), ["c7", *TENS[1:]]
    with pytest.raises(BadInput, match="item q0 is c0 for the base and c7 for the candidate"):
        compared(base, clustered(tmp_path / "b.csv", other))


def test_an_identical_candidate_is_never_rejected(tmp_path):
    shutil.copytree(BASE, tmp_path / "same")
    found = compared(BASE, tmp_path / "same")
    assert found.verdict != "DO NOT SHIP"
    assert all(task.difference.difference == 0 for task in found.tasks.values())


def test_other_surroundings_are_told_and_other_items_refused(tmp_path):
    shutil.copytree(CANDIDATE, tmp_path / "other")
    path = tmp_path / "other" / "accuracy.json"

    def rewritten(**changes):
        document = json.loads((CANDIDATE / "accuracy.json").read_text())
        document["protocol"] |= changes
        document["protocol_hash"] = protocol_hash(document["protocol"])
        path.write_text(json.dumps(document))

    rewritten(engine_version="0.33.0")
    notes = compared(BASE, tmp_path / "other").notes
    assert any(
        "engine_version differs" in note and "0.32.0" in note and "0.33.0" in note for note in notes
    )
    rewritten(lm_eval_version="0.5")
    with pytest.raises(
        BadInput, match=r"lm_eval_version is 0\.4\.13 for the base and 0\.5 for the candidate"
    ):
        compared(BASE, tmp_path / "other")


def test_an_edited_result_of_ours_is_refused(tmp_path):
    shutil.copytree(CANDIDATE, tmp_path / "other")
    path = tmp_path / "other" / "accuracy.json"
    path.write_text(path.read_text().replace('"acc": 0.0', '"acc": 1.0', 30))
    with pytest.raises(BadInput, match="but its items give"):
        compared(BASE, tmp_path / "other")


def test_the_average_of_one_task_is_no_other_loss(tmp_path):
    one = files.scores(tmp_path / "a.csv", files.binary(N, 1400))
    found = compared(one, files.scores(tmp_path / "b.csv", files.binary(N, 1400, 300)))
    assert found.sentence.endswith("surely more than the accepted 2.0 points.")
    for name, broken in (("one", 0), ("two", 300)):
        for task in ("x", "y"):
            files.scores(tmp_path / name / f"{task}.csv", files.binary(N, 1400, broken))
    assert "so is the loss on 1 other." in compared(tmp_path / "one", tmp_path / "two").sentence


@pytest.mark.parametrize(
    ("n", "right", "repaired", "words"),
    [(60, 3, 3, "did not change"), (6000, 1000, 1001, "rose by less than 0.1 points")],
)
def test_a_change_that_rounds_to_nothing_is_not_given_as_0(tmp_path, n, right, repaired, words):
    base = files.scores(tmp_path / "a.csv", files.binary(n, n // 2))
    other = files.scores(tmp_path / "b.csv", files.binary(n, n // 2, right, repaired))
    found = compared(base, other, average=0.5)
    assert found.verdict == "INCONCLUSIVE"
    assert f" {words} (" in found.sentence


# --- The terminal ---


def printed(monkeypatch, columns, base, candidate):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    return CliRunner().invoke(main, ["compare", str(base), str(candidate)]).stdout


def column(text, start):
    """The words of the column that starts at the place, without the spaces of its lines."""
    return "".join(line[start:].strip() for line in text.splitlines())


@pytest.mark.parametrize("columns", [60, 80, 100, 110, 200])
def test_a_narrow_terminal_wraps_the_tables_and_cuts_nothing(monkeypatch, sample, columns):
    text = printed(monkeypatch, columns, BASE, CANDIDATE)
    table = text.partition("\n\n")[2].partition("Speed,")[0]
    assert max(map(len, table.splitlines())) <= columns
    (heading,) = (line for line in table.splitlines() if "Reading" in line or "Readin" in line)
    readings = column(table, heading.index("Readin"))
    for words in ("about4,379itemswouldsettleit", "nearchance:decidesnothing", "beyondmargin"):
        assert words in readings.replace(" ", "")


def test_a_log_shows_the_whole_of_a_long_name_and_its_reading(monkeypatch, tmp_path):
    name = "a_task_with_" + "a_very_" * 8 + "long_name"
    for side in ("one", "two"):
        rows = files.binary(N, 1400)
        files.scores(tmp_path / side / "s.csv", rows, task=[name] * N)
    text = printed(monkeypatch, None, tmp_path / "one", tmp_path / "two")
    assert any(line.startswith(f" {name} ") for line in text.splitlines())
    assert "within margin" in text


# --- Speed ---


def loads(*speeds, **changes):
    return [Load("8 concurrent requests", speed,
                 **{"prompt_tokens": 128, "output_tokens": 32, **changes})
            for speed in speeds]  # fmt: skip


@pytest.mark.parametrize(
    ("candidate", "pace"),
    [
        ((60, 61, 62), "FASTER"),
        ((30, 31, 32), "NOT FASTER"),
        ((35, 41, 47), "UNSURE"),
        ((60,), "UNSURE"),
    ],
)
def test_pace_by_the_interval_over_the_repeats(candidate, pace):
    (found,) = compare_loads(loads(40, 41, 42), loads(*candidate))
    assert found.pace == pace
    assert (found.speedup_ci95 is None) == (len(candidate) == 1)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (loads(60, 61, output_tokens=64), "not the same work: 32.0 output tokens"),
        (loads(60, 61, problem="3 requests failed"), "candidate: 3 requests failed"),
        ([], "not measured for the candidate"),
    ],
)
def test_a_load_that_cannot_be_compared_is_unsure_and_says_why(other, reason):
    (found,) = compare_loads(loads(40, 41), other)
    assert found.pace == "UNSURE"
    assert found.speedup is None
    assert found.reason.startswith(reason)


def test_much_faster_does_not_make_a_worse_model_ship(tmp_path):
    for name, broken, speed in (("one", 0, 40.0), ("two", 400, 90.0)):
        files.scores(tmp_path / name / "s.csv", files.binary(N, 1400, broken))
        files.guidellm(tmp_path / name / "1.json", {1: speed})
        files.guidellm(tmp_path / name / "2.json", {1: speed * 1.01})
    found = compared(tmp_path / "one", tmp_path / "two")
    assert found.speed[0].pace == "FASTER"
    assert found.verdict == "DO NOT SHIP"


def test_what_only_one_side_has_is_told(tmp_path):
    files.scores(tmp_path / "two" / "s.csv", files.binary(N, 1400))
    files.guidellm(tmp_path / "two" / "1.json", {1: 40.0})
    found = compared(files.scores(tmp_path / "one.csv", files.binary(N, 1400)), tmp_path / "two")
    assert found.notes == (f"Speed is not compared: only {tmp_path / 'two'} holds it.",)


# --- Files ---


def test_junit_has_a_case_for_the_verdict_each_task_and_each_load(sample, tmp_path):
    write_junit(tmp_path / "out.xml", sample)
    answers, speed = ElementTree.parse(tmp_path / "out.xml").getroot()
    outcomes = {case.get("name"): [child.tag for child in case] for case in answers}
    assert outcomes == {
        "verdict": ["failure"],
        "mmlu_dev": ["skipped"],  # too weak to decide
        "word_analogies": ["failure"],  # not surely within its margin
        "wikipedia": ["failure"],
    }
    assert answers.find("testcase/failure").get("message") == sample.sentence
    counts = {key: answers.get(key) for key in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "4", "failures": "3", "skipped": "1", "errors": "0"}
    assert [case.get("name") for case in speed] == ["1 concurrent request", "2 concurrent requests"]
    assert not speed.findall("testcase/failure")


def test_the_page_is_self_contained_and_escapes_what_it_shows(tmp_path):
    texts = {"prompt": "Is <script>alert(1)</script> {}?"}
    one = files.lm_eval(tmp_path / "<b>one", {"arc": files.binary(N, 1400)}, **texts)
    two = files.lm_eval(tmp_path / "two", {"arc": files.binary(N, 1400, 400)}, **texts)
    found = compared(one, two)
    write_html(tmp_path / "out.html", found)
    page = (tmp_path / "out.html").read_text()
    assert found.sentence in page
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page
    assert "<b>one" not in page
    assert not [
        word for word in ("http://", "https://", "src=", "@import", "<link") if word in page
    ]


def test_markdown_has_the_sentence_and_every_task(sample, tmp_path):
    write_markdown(tmp_path / "out.md", sample)
    text = (tmp_path / "out.md").read_text()
    assert f"**{sample.sentence}**" in text
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert {"mmlu_dev (acc)", "word_analogies (acc)", "wikipedia (word_perplexity)"} <= set(rows)


def test_the_readme_shows_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("COLUMNS", raising=False)
    sides = [str(folder.relative_to(ROOT)) for folder in (BASE, CANDIDATE)]
    result = CliRunner().invoke(main, ["compare", *sides])
    printed = "\n".join(line.rstrip() for line in result.stdout.splitlines()).rstrip()
    assert printed in (ROOT / "README.md").read_text()
