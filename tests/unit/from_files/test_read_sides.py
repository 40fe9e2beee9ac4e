"""What is read of each tool's files."""

import json

import pytest
import result_files as files

from model_serve_flow.errors import BadInput
from model_serve_flow.from_files.decision import compare_sides
from model_serve_flow.from_files.recognise import read_side
from model_serve_flow.from_files.rules import Rules

SPEEDS = [40.0, 41.0, 42.0]


def task(side, name):
    return side.answers.tasks[name].accuracy


# --- lm-eval ---


def test_lm_eval_items_have_the_documents_hash_as_id_whatever_their_order(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0, 1.0]})
    (samples,) = folder.glob("samples_*")
    lines = samples.read_text().splitlines()
    before = read_side(folder)
    samples.write_text("\n".join(reversed(lines)) + "\n")
    assert {i.id: i.values["acc"] for i in task(before, "arc").items} == {
        i.id: i.values["acc"] for i in task(read_side(folder), "arc").items
    }
    assert task(before, "arc").items[0].id == json.loads(lines[0])["doc_hash"][:16]


def test_lm_eval_guessing_clusters_and_model(tmp_path):
    side = read_side(files.lm_eval(tmp_path / "one", {"arc": files.binary(40, 30)}))
    assert task(side, "arc").chance == 0.25  # four choices
    assert {item.groups["category"] for item in task(side, "arc").items} == {
        f"part {n}" for n in range(20)
    }
    assert side.answers.model == "some-model"


def test_lm_eval_filters_are_metrics_of_one_item(tmp_path):
    filters = {"strict-match": [1.0, 0.0, 0.0], "flexible-extract": [1.0, 1.0, 0.0]}
    side = read_side(files.lm_eval(tmp_path / "one", {"gsm8k": filters}, metric="exact_match"))
    found = task(side, "gsm8k")
    assert found.n == 3
    assert found.items[1].values["exact_match,strict-match"] == 0
    assert found.items[1].values["exact_match,flexible-extract"] == 1


def test_an_lm_eval_group_is_one_task_of_all_its_items(tmp_path):
    tasks = {"mmlu_law": files.binary(20, 12), "mmlu_art": files.binary(30, 12)}
    side = read_side(files.lm_eval(tmp_path / "one", tasks, groups={"mmlu": list(tasks)}))
    assert list(side.answers.tasks) == ["mmlu"]
    assert task(side, "mmlu").n == 50
    assert task(side, "mmlu").metrics["acc"].value == pytest.approx(24 / 50)
    assert {item.groups["subtask"] for item in task(side, "mmlu").items} == {"law", "art"}


def test_a_group_whose_figure_is_not_that_of_its_items_is_its_tasks(tmp_path):
    tasks = {"part_a": files.binary(20, 12), "part_b": files.binary(30, 12)}
    folder = files.lm_eval(tmp_path / "one", tasks, groups={"both": list(tasks)})
    (path,) = folder.glob("results_*")
    results = json.loads(path.read_text())
    results["results"]["both"]["acc,none"] = (12 / 20 + 12 / 30) / 2  # a mean of means
    path.write_text(json.dumps(results))
    assert list(read_side(folder).answers.tasks) == ["part_a", "part_b"]


def test_tasks_under_a_tag_are_tasks_of_their_own(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"easy": [1.0, 0.0], "hard": [0.0, 0.0]})
    (path,) = folder.glob("results_*")
    results = json.loads(path.read_text())
    results["group_subtasks"]["arc"] = ["easy", "hard"]  # a tag has no figures
    path.write_text(json.dumps(results))
    assert list(read_side(folder).answers.tasks) == ["easy", "hard"]


def test_several_runs_in_a_folder_are_one_side_unless_they_share_a_task(tmp_path):
    folder = files.lm_eval(tmp_path / "out" / "some-model", {"arc": [1.0, 0.0]})
    files.lm_eval(folder, {"hella": [1.0, 1.0]}, date="2026-11-30T10-00-00.000000")
    assert set(read_side(tmp_path / "out").answers.tasks) == {"arc", "hella"}  # also one folder up
    files.lm_eval(folder, {"arc": [1.0, 1.0]}, date="2026-12-01T10-00-00.000000")
    with pytest.raises(BadInput, match=r"results_2026-11-29.*results_2026-12-01.*task arc"):
        read_side(folder)
    assert (
        task(read_side(folder / "results_2026-12-01T10-00-00.000000.json"), "arc")
        .metrics["acc"]
        .value
        == 1
    )


def edited(folder, change):
    (samples,) = folder.glob("samples_*")
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
    return folder


def test_a_document_that_a_dataset_has_twice_is_two_items(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0, 1.0]})
    edited(folder, lambda lines: [{**line, "doc_hash": "a" * 64} for line in lines])
    assert [item.id for item in task(read_side(folder), "arc").items] == [
        "a" * 16,
        f"{'a' * 16}-2",
        f"{'a' * 16}-3",
    ]


def test_without_a_hash_the_number_of_the_document_counts_and_its_prompt_is_compared(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    dropped = ("doc_hash", "prompt_hash", "target_hash")
    edited(
        folder,
        lambda lines: [{k: v for k, v in line.items() if k not in dropped} for line in lines],
    )
    side = read_side(folder)
    assert [item.id for item in task(side, "arc").items] == ["document 0", "document 1"]
    digest = files.digest("arc Q: question 0\nA:")
    assert side.answers.tasks["arc"].questions["document 0"].startswith(digest)
    edited(folder, lambda lines: [{**line, "arguments": {}} for line in lines])
    with pytest.raises(BadInput, match="neither prompt_hash nor arguments"):
        read_side(folder)


def test_a_sample_twice_is_refused(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    edited(folder, lambda lines: [*lines, lines[0]])
    with pytest.raises(BadInput, match="document 0 has two samples"):
        read_side(folder)


def test_results_of_other_samples_are_refused_by_their_figure(tmp_path):
    one, two = (
        files.lm_eval(tmp_path / name, {"arc": files.binary(40, 30)}) for name in ("one", "two")
    )
    edited(two, lambda lines: [{**line, "acc": 1.0} for line in lines])
    with pytest.raises(BadInput, match=r"acc is given as 0\.75, but its items give 1"):
        compare_sides(read_side(one), read_side(two), Rules())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("score", [100.0, -1.0])
def test_a_score_that_is_no_proportion_is_named(tmp_path, grouped, score):
    groups = {"both": ["arc"]} if grouped else {}
    folder = files.lm_eval(tmp_path / "one", {"arc": [0.0, score]}, groups=groups)
    with pytest.raises(
        BadInput,
        match=rf"(arc|both) in .*\.json.*: acc of the item \S+ is {score:g}, not .* 0 to 1",
    ):
        read_side(folder)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("group_subtasks", None, "'group_subtasks' is None"),
        ("group_subtasks", [], r"'group_subtasks' is \[\]"),
        ("group_subtasks", {"both": None}, r"'group_subtasks\.both' is None"),
        ("group_subtasks", {"a": ["b"], "b": ["a"]}, "the group 'a' .* holds itself"),
        ("group_subtasks", {"arc": ["arc"]}, "the group 'arc' .* holds itself"),
        ("configs", {"arc": None}, r"'configs\.arc' is None"),
        ("results", {"arc": None}, r"'results\.arc' is None"),
        ("n-shot", [0], r"'n-shot' is \[0\]"),
        ("higher_is_better", None, "'higher_is_better' is None"),
    ],
)
def test_a_part_of_lm_evals_results_of_another_form_is_named(tmp_path, part, value, words):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    (path,) = folder.glob("results_*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    with pytest.raises(BadInput, match=rf"results_.*json.*{words}"):
        read_side(folder)


def test_a_text_that_the_model_wrote_is_read(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"gsm8k": [1.0, 0.0]}, metric="exact_match")
    (path,) = folder.glob("results_*")
    path.write_text(path.read_text().replace("multiple_choice", "generate_until"))
    edited(
        folder, lambda lines: [{**line, "filtered_resps": [["The answer is 4."]]} for line in lines]
    )
    found = task(read_side(folder), "gsm8k")
    assert found.chance is None
    assert found.items[0].answer == "The answer is 4."


@pytest.mark.parametrize("line", ["{", "[]", '{"doc_id": 1}', "3"])
def test_a_broken_line_is_named(tmp_path, line):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    (samples,) = folder.glob("samples_*")
    samples.write_text(samples.read_text() + line + "\n")
    with pytest.raises(BadInput, match=r"samples_arc_.*jsonl, line 3"):
        read_side(folder)


def test_samples_alone_are_named_with_what_is_needed(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    with pytest.raises(BadInput, match=r"Name the results_\*.json"):
        read_side(next(folder.glob("samples_*")))


# --- Scores ---


def test_scores_of_a_csv_with_tasks_and_clusters(tmp_path):
    tasks, clusters = ["a", "a", "b"], ["x", "y", ""]
    side = read_side(files.scores(tmp_path / "s.csv", [1, 0.25, 0], task=tasks, cluster=clusters))
    assert {name: found.accuracy.n for name, found in side.answers.tasks.items()} == {
        "a": 2,
        "b": 1,
    }
    assert task(side, "a").items[1].values["score"] == 0.25
    assert [item.groups for item in task(side, "a").items] == [{"cluster": "x"}, {"cluster": "y"}]


def test_scores_of_a_jsonl(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"id": 1, "score": true}\n\n{"id": "2", "score": 0.5, "comment": "x"}\n')
    assert [(item.id, item.values["score"]) for item in task(read_side(path), "scores").items] == [
        ("1", 1),
        ("2", 0.5),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": "a", "score": 10**400}, r"the score 10+ is not a number"),
        ({"id": "\ud800", "score": 1}, r"the id '\\ud800' holds a control character"),
        ({"id": "a", "score": 1, "task": "\ud800"}, r"the task '\\ud800' holds"),
    ],
)
def test_a_value_of_a_jsonl_that_cannot_be_used_is_named_with_its_line(tmp_path, row, words):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=rf"s\.jsonl, line 1: {words}"):
        read_side(path)


def test_a_folder_of_score_files_is_a_task_each(tmp_path):
    files.scores(tmp_path / "gsm8k.csv", [1, 0])
    files.scores(tmp_path / "arc.csv", [1, 1])
    assert set(read_side(tmp_path).answers.tasks) == {"gsm8k", "arc"}


def test_answers_of_several_kinds_in_a_folder_are_refused(tmp_path):
    files.lm_eval(tmp_path, {"arc": [1.0, 0.0]})
    files.scores(tmp_path / "scores.csv", [1, 0])
    with pytest.raises(BadInput, match=r"results_.*json, .*scores\.csv"):
        read_side(tmp_path)


# --- Names that would forge a log ---

FORGED = ["x\n::error::forged", "x\x1b[2J", "x\u2028y", "x\x85y", "x\ud800", "x\uffff"]


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("key", ["id", "task"])
def test_control_characters_in_a_file_of_scores_are_refused(tmp_path, key, name):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "a", "score": 1, key: name}) + "\n")
    with pytest.raises(BadInput) as refusal:
        read_side(path)
    assert f"s.jsonl, line 1: the {key} {name!a} holds" in refusal.value.problem


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("key", ["doc_id", "doc_hash", "filter"])
def test_control_characters_in_samples_of_lm_eval_are_refused(tmp_path, key, name):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    edited(folder, lambda lines: [lines[0] | {key: name}, lines[1]])
    with pytest.raises(BadInput) as refusal:
        read_side(folder)
    assert f".jsonl, line 1: the {key} {name!a} holds" in refusal.value.problem


def test_control_characters_in_names_of_lm_evals_results_are_refused(tmp_path):
    folder = files.lm_eval(tmp_path / "one", {"arc": [1.0, 0.0]})
    (path,) = folder.glob("results_*")
    before = path.read_text()
    for old in ("arc", "some-model"):
        path.write_text(before.replace(f'"{old}"', json.dumps(FORGED[0])))
        with pytest.raises(BadInput, match=r"results_.*holds a control character"):
            read_side(folder)


def test_signs_and_letters_of_any_language_are_names(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "Frage 1 – ü, 問\u200d", "score": 1}) + "\n")
    assert task(read_side(path), "scores").n == 1


# --- Speed ---


def test_vllm_bench_with_appended_results_are_repeats(tmp_path):
    path = tmp_path / "bench.json"
    for speed in SPEEDS:
        files.vllm_bench(path, speed)
    side = read_side(path)
    assert [load.output_tokens_per_s for load in side.loads] == SPEEDS
    assert {load.load for load in side.loads} == {"8 concurrent requests"}
    assert side.loads[0].prompt_tokens == 128


def test_loads_are_named_by_what_was_put_on(tmp_path):
    files.vllm_bench(tmp_path / "a.json", 40.0, None, request_rate=2.5)
    files.vllm_bench(tmp_path / "b.json", 40.0, None)
    files.guidellm(tmp_path / "c.json", {1: 40.0, 8: 41.0})
    files.guidellm(tmp_path / "d.json", {4: 40.0}, kind="constant")
    names = [load.load for load in read_side(tmp_path).loads]
    assert names == [
        "2.5 requests/s",
        "all requests at once",
        "1 concurrent request",
        "8 concurrent requests",
        "4 requests/s (constant)",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"failed": 3}, "3 requests failed"),
        ({"output_throughput": 0.0}, "no output tokens"),
        ({"completed": 0, "num_prompts": 0, "output_throughput": 0.0}, "no output tokens"),
        ({"completed": 60}, "40 requests failed"),
        ({"completed": 0, "output_throughput": 0.0}, "100 requests failed"),
    ],
)
def test_a_load_with_failures_is_not_compared(tmp_path, changes, problem):
    side = read_side(files.vllm_bench(tmp_path / "bench.json", 40.0, **changes))
    assert side.loads[0].problem == problem


def test_requests_that_did_not_complete_failed_even_if_the_file_does_not_count_them(tmp_path):
    path = files.vllm_bench(tmp_path / "bench.json", 40.0, completed=97)
    document = json.loads(path.read_text())
    del document["failed"]
    path.write_text(json.dumps(document))
    assert read_side(path).loads[0].problem == "3 requests failed"
    del document["num_prompts"]
    path.write_text(json.dumps(document))
    assert not read_side(path).loads[0].problem


@pytest.mark.parametrize("field", ["completed", "output_throughput", "total_input_tokens"])
def test_a_field_of_another_kind_is_named(tmp_path, field):
    path = files.vllm_bench(tmp_path / "bench.json", 40.0, **{field: "many"})
    with pytest.raises(BadInput, match=rf"bench\.json.*{field}"):
        read_side(path)


def test_a_cut_file_of_guidellm_is_named(tmp_path):
    path = files.guidellm(tmp_path / "load.json", {1: 40.0})
    document = json.loads(path.read_text())
    del document["benchmarks"][0]["metrics"]["output_tokens_per_second"]
    path.write_text(json.dumps(document))
    with pytest.raises(
        BadInput, match=r"load\.json.*benchmarks\.0\.metrics\.output_tokens_per_second"
    ):
        read_side(path)
    path.write_text("{")
    with pytest.raises(BadInput, match=r"load\.json is not valid JSON"):
        read_side(path)
