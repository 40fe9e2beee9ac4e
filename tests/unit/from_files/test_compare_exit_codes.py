"""What CI reads of `model-serve-flow compare`: the exit code, and the first sentence."""

import json
import os

import pytest
import result_files as files
from click.testing import CliRunner

from model_serve_flow.cli import main

N = 2000


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments: CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def base(tmp_path):
    return files.scores(tmp_path / "base.csv", files.binary(N, 1400))


def candidate(tmp_path, broken, repaired):
    return files.scores(tmp_path / "candidate.csv", files.binary(N, 1400, broken, repaired))


@pytest.mark.parametrize(
    ("broken", "repaired", "code", "verdict"),
    [(20, 20, 0, "SHIP: "), (300, 20, 10, "DO NOT SHIP: "), (60, 20, 20, "INCONCLUSIVE: ")],
)
def test_each_verdict_has_its_exit_code_and_its_sentence_first(
    invoke, base, tmp_path, broken, repaired, code, verdict
):
    result = invoke(base, candidate(tmp_path, broken, repaired))
    assert result.exit_code == code, result.output
    assert result.stdout.startswith(verdict)


def test_a_wider_margin_ships_what_a_narrow_one_does_not(invoke, base, tmp_path):
    worse = candidate(tmp_path, 60, 20)  # -2 points
    assert invoke(base, worse, "--margin", "5").exit_code == 0
    assert invoke(base, worse, "--margin", "0.5").exit_code == 10


def test_a_missing_file_is_usage(invoke, base):
    result = invoke(base, "nothing.csv")
    assert result.exit_code == 2
    assert "nothing.csv" in result.stderr


@pytest.mark.parametrize("option",
                         [("--margin", "-1"), ("--margin", "nan"), ("--task-margin", "gsm8k"),
                                    ("--required", ""), ("--advisory", " "),
                                    ("--task-margin", "items=x"), ("--speed", "1")])  # fmt: skip
def test_a_bad_option_is_usage(invoke, base, tmp_path, option):
    assert invoke(base, candidate(tmp_path, 1, 1), *option).exit_code == 2


def test_a_crash_is_not_a_verdict(invoke, base, tmp_path, monkeypatch):
    monkeypatch.setattr("model_serve_flow.from_files.decision.decide", lambda *_: 1 / 0)
    assert invoke(base, candidate(tmp_path, 1, 1)).exit_code == 1


def test_an_output_that_cannot_be_written_is_an_error(invoke, base, tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke(base, candidate(tmp_path, 20, 20), "--json", tmp_path / "file" / "out.json")
    assert result.exit_code == 1
    assert "out.json" in result.stderr


def test_speed_alone_never_ships(invoke, tmp_path):
    slow = files.guidellm(tmp_path / "base.json", {1: 50.0})
    fast = files.guidellm(tmp_path / "candidate.json", {1: 90.0})
    result = invoke(slow, fast)
    assert result.exit_code == 20
    assert result.stdout.startswith("INCONCLUSIVE: ")
    assert "UNSURE" in result.stdout  # one repeat has no interval


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--retention", "nan", "nan is not a share, above 0 and below 1"),
        ("--retention", "1", "1 is not a share, above 0 and below 1"),
        ("--margin", "200", "200 is not a drop in points, above 0 and at most 100."),
        ("--average-margin", "150", "150 is not a drop in points, above 0 and at most 100."),
        ("--perplexity-margin", "1e308", "1e308 is not a rise in percent, above 0 and at most 100"),
        ("--task-margin", "scores=150", "150 is not a loss in points, or in percent"),
    ],
)
def test_a_number_that_makes_no_sense_is_named_with_its_option(
    invoke, base, tmp_path, option, value, words
):
    refused(invoke(base, candidate(tmp_path, 1, 1), option, value), option, words)


# --- Refusals: what cannot be compared is named ---


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert "SHIP" not in result.stdout
    for word in words:
        assert word in result.stderr


def test_missing_items_are_named(invoke, base, tmp_path):
    shorter = files.scores(tmp_path / "shorter.csv", files.binary(N - 1, 1400))
    refused(invoke(base, shorter), "1 item", "q1999", "shorter.csv")
    refused(invoke(shorter, base), "1 item", "q1999", "shorter.csv")


def test_a_repeated_id_is_named_with_its_line(invoke, base, tmp_path):
    twice = tmp_path / "twice.csv"
    twice.write_text("id,score\na,1\nb,0\na,1\n")
    refused(invoke(base, twice), "twice.csv", "line 4", "'a'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,score\na,good\n", ("line 2", "score", "'good'")),
        ("id,score\na,7\n", ("line 2", "0 to 1")),
        ("id,score\na,nan\n", ("line 2",)),
        ("id,score\n,1\n", ("line 2", "id")),
        ("name,value\na,1\n", ("id", "score")),
        ("", ("empty",)),
        ("id;score\na;1\n", ("line 1", "'id;score'", "with commas")),
        ("id\tscore\na\t1\n", ("line 1", "id\\tscore", "with commas")),
    ],
)
def test_a_file_of_scores_that_is_none_is_named(invoke, base, tmp_path, text, words):
    (tmp_path / "bad.csv").write_text(text)
    refused(invoke(base, tmp_path / "bad.csv"), "bad.csv", *words)


def test_a_file_of_no_known_kind_is_named_with_what_is_read(invoke, base, tmp_path):
    (tmp_path / "other.json").write_text('{"hello": 1}')
    refused(
        invoke(base, tmp_path / "other.json"),
        "other.json",
        "lm-eval",
        "GuideLLM",
        "vllm bench",
        "CSV",
    )


def test_a_folder_without_results_is_named(invoke, base, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(invoke(base, tmp_path / "empty"), "empty", "lm-eval")


def test_the_same_file_twice_is_refused(invoke, base):
    refused(invoke(base, base), "the same")


def test_answers_against_speed_are_refused(invoke, base, tmp_path):
    refused(invoke(base, files.guidellm(tmp_path / "speed.json", {1: 50.0})), "speed.json")


def test_scores_against_lm_eval_are_refused(invoke, base, tmp_path):
    other = files.lm_eval(tmp_path / "lm", {"arc": files.binary(100, 60)})
    refused(invoke(base, other), "lm-eval", "base.csv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2.0}, ("arc", "version", "1.0", "2.0")),
        ({"shots": 5}, ("arc", "few-shot", "0", "5")),
        ({"prompt": "Please answer {}"}, ("arc", "prompt", "100 of 100")),
        ({"generation": {"temperature": 1.0}}, ("arc", "generation_kwargs", "temperature")),
        ({"max_length": 512}, ("arc", "max_length", "2048", "512")),
        ({"model_args": "model=m,add_bos_token=True"}, ("arc", "add_bos_token", "True")),
        ({"model_args": {"max_gen_toks": 64}}, ("arc", "max_gen_toks", "64")),
    ],
)
def test_lm_eval_results_measured_otherwise_are_refused(invoke, tmp_path, changes, words):
    one = files.lm_eval(tmp_path / "one", {"arc": files.binary(100, 60)})
    two = files.lm_eval(tmp_path / "two", {"arc": files.binary(100, 60)}, **changes)
    refused(invoke(one, two), *words)


def test_another_dtype_of_lm_eval_is_told(invoke, tmp_path):
    one = files.lm_eval(tmp_path / "one", {"arc": files.binary(100, 60)})
    arguments = "pretrained=/models/w8a8,dtype=bfloat16"
    two = files.lm_eval(tmp_path / "two", {"arc": files.binary(100, 60)}, model_args=arguments)
    result = invoke(one, two)
    assert result.exit_code in (0, 20) and "Note: dtype differs" in result.output
    assert "/models/w8a8" not in result.output


def test_lm_eval_without_samples_is_refused(invoke, tmp_path):
    one = files.lm_eval(tmp_path / "one", {"arc": files.binary(100, 60)})
    two = files.lm_eval(tmp_path / "two", {"arc": files.binary(100, 60)})
    next(two.glob("samples_*")).unlink()
    refused(invoke(one, two), "samples_arc", "--log_samples")


def test_a_task_that_only_one_side_has_is_refused(invoke, tmp_path):
    one = files.lm_eval(
        tmp_path / "one", {"arc": files.binary(100, 60), "hella": files.binary(100, 60)}
    )
    two = files.lm_eval(tmp_path / "two", {"arc": files.binary(100, 60)})
    refused(invoke(one, two), "hella", "two")
    assert invoke(one, two, "--advisory", "hella").exit_code != 2


# --- Outputs ---


def test_an_output_never_overwrites_what_is_compared(invoke, base, tmp_path):
    other, before = candidate(tmp_path, 1, 1), base.read_text()
    (tmp_path / "link.csv").symlink_to(base)
    for path in ("./base.csv", "./link.csv"):
        refused(invoke(base, other, "--json", path), "--json", path[2:], "another file")
    assert base.read_text() == before


def test_an_output_never_overwrites_a_file_of_a_folder_that_is_compared(invoke, tmp_path):
    one, two = (files.lm_eval(tmp_path / n, {"arc": files.binary(100, 60)}) for n in ("one", "two"))
    for file in [*one.iterdir(), *two.iterdir()]:
        refused(invoke(one, two, "--html", file), "--html", file.name)
    for _ in range(2):  # the second time it overwrites its own output
        assert invoke(one, two, "--json", one / "compared.json").exit_code != 2


def test_two_outputs_in_one_file_are_refused(invoke, base, tmp_path):
    result = invoke(base, candidate(tmp_path, 1, 1), "--json", "o", "--junit", "./o")
    refused(result, "--json", "--junit", " o.")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("path", ["pipe", "folder"])  # a device would be lost if this failed
def test_an_output_that_is_no_regular_file_is_refused(invoke, base, tmp_path, path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    refused(invoke(base, candidate(tmp_path, 1, 1), "--json", path), path)


@pytest.mark.parametrize("option", ["--html", "--json", "--markdown", "--junit"])
def test_an_output_where_no_file_can_be_made_is_an_error_with_its_option(
    invoke, base, tmp_path, option
):
    result = invoke(base, candidate(tmp_path, 1, 1), option, "/proc/x.html")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "/proc/x.html cannot be written" in result.stderr and option in result.stderr
    assert "artifacts" not in result.stderr


def test_an_output_without_a_name_is_refused(invoke, base, tmp_path):
    refused(invoke(base, candidate(tmp_path, 1, 1), "--json", ""), "--json")


# --- Tiers ---


def test_a_required_task_that_is_missing_blocks(invoke, base, tmp_path):
    same = candidate(tmp_path, 20, 20)
    result = invoke(base, same, "--required", "gsm8k")
    assert result.exit_code == 20
    assert "gsm8k" in result.stdout.splitlines()[0]


def test_a_required_task_that_cannot_decide_blocks(invoke, tmp_path):
    tasks = {"arc": files.binary(N, 1400), "weak": files.binary(N, 520)}  # 26 % on four choices
    one, two = (files.lm_eval(tmp_path / name, tasks) for name in ("one", "two"))
    assert invoke(one, two).exit_code == 0
    result = invoke(one, two, "--required", "weak")
    assert result.exit_code == 20
    assert "weak" in result.stdout.splitlines()[0]


def test_an_advisory_task_is_shown_and_does_not_decide(invoke, tmp_path):
    one = files.lm_eval(
        tmp_path / "one", {"arc": files.binary(N, 1400), "bad": files.binary(N, 1400)}
    )
    two = files.lm_eval(
        tmp_path / "two", {"arc": files.binary(N, 1400), "bad": files.binary(N, 1400, 400)}
    )
    assert invoke(one, two).exit_code == 10
    result = invoke(one, two, "--advisory", "bad", "--json", tmp_path / "out.json")
    assert result.exit_code == 0
    assert "bad (advisory)" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["tasks"]["bad"]["tier"] == "advisory"


@pytest.mark.parametrize("options", [("--advisory", "nothing"), ("--task-margin", "nothing=1"),
                                     ("--required", "scores", "--advisory", "scores")])  # fmt: skip
def test_a_tier_or_margin_of_no_task_is_refused(invoke, base, tmp_path, options):
    refused(
        invoke(base, candidate(tmp_path, 20, 20), *options),
        "nothing" if "nothing" in options[1] else "scores",
    )


def test_a_task_has_its_own_margin(invoke, tmp_path):
    one = files.lm_eval(
        tmp_path / "one", {"arc": files.binary(N, 1400), "soft": files.binary(N, 1400)}
    )
    two = files.lm_eval(
        tmp_path / "two", {"arc": files.binary(N, 1400), "soft": files.binary(N, 1400, 80, 20)}
    )
    options = ("--margin", "1", "--retention", "0.8")
    assert invoke(one, two, *options).exit_code == 10
    assert invoke(one, two, *options, "--task-margin", "soft=8").exit_code == 0


@pytest.mark.parametrize("key", ["prompt", "answer", "target"])
def test_half_a_character_in_a_sample_of_lm_eval_is_shown_escaped(invoke, tmp_path, key):
    half = "\ud83d"  # a model can stop in the middle of a pair; lm-eval writes it as \ud83d
    sides = []
    for name, broken in (("base", 0), ("candidate", 30)):
        folder = files.lm_eval(tmp_path / name, {"arc": files.binary(100, 80, broken)})
        (path,) = folder.glob("samples_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if key == "prompt":
                line["arguments"]["gen_args_0"]["arg_0"] += half
                del line["prompt_hash"]
            elif key == "target":
                line["target"] = f"A{half}"
                del line["target_hash"]
            else:
                line["filtered_resps"] = [f"A{half}"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if key != "prompt":
            (results,) = folder.glob("results_*.json")
            text = results.read_text().replace("multiple_choice", "generate_until")
            results.write_text(text)
        sides.append(str(folder))
    names = {"json": "c.json", "html": "c.html", "markdown": "c.md", "junit": "c.xml"}
    outputs = {option: tmp_path / name for option, name in names.items()}
    options = [part for option, path in outputs.items() for part in (f"--{option}", str(path))]
    result = invoke(*sides, *options)
    assert result.exit_code == 10, result.output
    if key != "prompt":
        flipped = json.loads(outputs["json"].read_text())["tasks"]["arc"]["flipped"]
        assert all("\\ud83d" in str(item) for item in flipped) and len(flipped) == 30
        assert "\\ud83d" in outputs["html"].read_text(encoding="utf-8")
