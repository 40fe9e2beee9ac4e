"""The real lm-eval against an endpoint that counts:
what was answered before a kill is not asked again.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure import lm_eval_cache
from model_serve_flow.measure.accuracy import (
    measure_accuracy,
    measure_accuracy_again,
    prepare_evaluation,
)
from model_serve_flow.serve.server import Server
from model_serve_flow.setup.tasks import task_definition
from model_serve_flow.system import live

CONCURRENCY, BATCH = 3, 2
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:()\n"
KEY = "a-key-nobody-may-write-down"
SETTINGS = {
    "accuracy.tasks": ["word_analogies", "wikipedia", "free"],
    "accuracy.concurrency": CONCURRENCY,
    "accuracy.batch_size": BATCH,
    "accuracy.again": {"concurrency": 1, "batch_size": 1},
    "accuracy.limit": None,
    "engine.max_model_len": 128,
}
MEASURE = """
import sys
from test_resume import measure_accuracy, opened, serving

flow = opened(sys.argv[1])
measure_accuracy(flow, serving(flow, sys.argv[2]))
"""


@dataclass
class Endpoint:
    """Answers `/v1/completions` as vLLM does,
    with log-probabilities that follow from the prompt, and remembers it.

    With `labels` it knows `logprob_token_ids`, and gives what an echo of prompt and label gives.
    """

    seconds: float = 0.0
    labels: bool = True
    metrics: str = ""
    refuse_after: int | None = None
    alter: object = staticmethod(lambda choices: choices)
    asked: list = field(default_factory=list)
    answered: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                endpoint.answer(self)

            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(endpoint.metrics)))
                self.end_headers()
                self.wfile.write(endpoint.metrics.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a client that was killed
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        prompts = [tuple(prompt) for prompt in body["prompt"]]
        with self.lock:
            self.asked += prompts
            refused = self.refuse_after is not None and len(self.asked) > self.refuse_after
        time.sleep(self.seconds)
        choices = [self.choice(index, prompt, body) for index, prompt in enumerate(prompts)]
        whole = choices if finds_out(prompts) else self.alter(choices)
        document = {"error": "the engine is dead"} if refused else {"choices": whole}
        content = json.dumps(document).encode()
        request.send_response(500 if refused else 200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)
        with self.lock:
            self.answered += [] if refused else prompts

    def choice(self, index, prompt, body):
        if not body.get("echo") and "logprobs" not in body:
            return {
                "index": index,
                "text": f" {hashlib.sha256(str(prompt).encode()).hexdigest()[:8]}",
            }
        if not body.get("echo"):
            values = {
                f"token_id:{label}": logprob((*prompt, label))
                for label in body["logprob_token_ids"]
            }
            likeliest = max(values, key=values.get)
            top = values if self.labels else {likeliest: values[likeliest]}
            logprobs = {
                "tokens": [likeliest],
                "token_logprobs": [values[likeliest]],
                "top_logprobs": [top],
            }
            return {"index": index, "text": "", "logprobs": logprobs}
        values = [logprob(prompt[:end]) for end in range(2, len(prompt) + 2)]
        logprobs = {
            "token_logprobs": [None, *values],
            "top_logprobs": [None, *({"x": value} for value in values)],
        }
        return {"index": index, "text": "", "logprobs": logprobs}


def finds_out(prompts):
    """Whether this is the request of one token that finds out what the engine knows."""
    return [len(prompt) for prompt in prompts] == [1]


def logprob(tokens):
    """Of the last token after the others; small enough for 128 labels."""
    return -5 - hashlib.sha256(str(tuple(tokens)).encode()).digest()[0] / 50


def opened(folder, *tasks):
    return Flow.open("ci", SETTINGS | ({"accuracy.tasks": list(tasks)} if tasks else {}), folder)


def serving(flow, url):
    log = flow.workspace.root / "vllm.log"
    return Server(
        url, "base", KEY, flow.workspace.model("base"), log, psutil.Process(), 1.0, engine=VLLM
    )


@pytest.fixture
def folder(tmp_path):
    """A workspace with a model's tokenizer,
    both packaged tasks and one whose answers are written.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    flow = opened(tmp_path)
    base, data = flow.workspace.model("base"), flow.workspace.data
    (data / "tasks").mkdir(parents=True)
    letters = ["<unk>", *LETTERS, *(f" {letter}" for letter in LETTERS if letter.isalnum())]
    inner = Tokenizer(
        models.WordLevel(
            {letter: number for number, letter in enumerate(letters)}, unk_token="<unk>"
        )
    )
    # a letter with the space before it
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" \w|[\s\S]"), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<unk>"
    ).save_pretrained(base)
    (base / "model.safetensors").write_bytes(b"weights")
    (flow.workspace.root / "vllm.log").write_text(
        "Initializing a V1 LLM engine (v0.32.0) with config\n"
    )
    analogies = [
        {
            "question": f"a is to b as {'c' * n} is to",
            "choices": list("defg"),
            "answer": n % 4,
            "category": "x",
        }
        for n in range(1, 31)
    ]
    texts = [{"title": "Red", "text": f"Red is colour {n}. " * (5 * n)} for n in range(1, 5)]
    write_task(data, "word_analogies", analogies)
    write_task(data, "wikipedia", texts)
    questions = data / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"id": str(n), "q": f"Say {n}:"}) + "\n" for n in range(8))
    )
    free = {
        **task_definition("word_analogies", questions),
        "task": "free",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "nothing",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    free.pop("doc_to_choice")
    (data / "tasks" / "free.yaml").write_text(yaml.safe_dump(free))
    return tmp_path


def write_task(data, task, rows):
    path = data / f"{task}.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"{task}-{n}", **row}) + "\n" for n, row in enumerate(rows))
    )
    (data / "tasks" / f"{task}.yaml").write_text(yaml.safe_dump(task_definition(task, path)))


def killed(folder, endpoint, answers):
    """Measures in a process that is killed as soon as the endpoint gave so many answers."""
    folders = [Path(__file__).parent, Path(__file__).parents[2]]  # with this file, with `support`
    places = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", MEASURE, str(folder), endpoint.url]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    while len(endpoint.answered) < answers:
        assert child.poll() is None, child.stderr.read().decode()[-3000:]
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    time.sleep(endpoint.seconds + 0.2)  # for what was on its way


def content(result):
    """A result without its times, its memory, the machine's load and how it was asked,
    as it is written.
    """
    left_out = {
        "seconds": True,
        "busy": True,
        "requests": True,
        "engine": {"start_seconds", "peak_memory_bytes"},
    }
    return result.model_dump(mode="json", exclude=left_out)


def caches(flow):
    return sorted(lm_eval_cache.cache_folder(flow.workspace).iterdir())


@pytest.fixture
def undisturbed(folder, tmp_path_factory):
    """The result of a measurement that nothing disturbed and where every choice was echoed."""
    other = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    with Endpoint(labels=False) as endpoint:
        flow = opened(other)
        return measure_accuracy(flow, serving(flow, endpoint.url))


# Among the questions, which are one prompt each or four, and among the texts it writes.
@pytest.mark.parametrize(("labels", "answers"), [(True, 15), (False, 60), (True, 47)])
def test_a_killed_measurement_goes_on_where_it_was(folder, undisturbed, labels, answers):
    with Endpoint(seconds=0.02, labels=labels) as endpoint:
        killed(folder, endpoint, answers)
        before, first = set(endpoint.answered), len(endpoint.asked)
        flow = opened(folder)
        assert len(caches(flow)) <= 2  # a database, and its journal if the kill came while it wrote
        assert lm_eval_cache.cache_folder(flow.workspace).stat().st_mode & 0o777 == 0o700
        result = measure_accuracy(flow, serving(flow, endpoint.url))
        again = before & set(endpoint.asked[first:])
        asked = len(endpoint.asked)
    # pytest -s
    print(f"{asked} prompts; killed after {first}, of which {len(again)} were asked again")
    # What was on its way, in each request or in a text of several windows, and what was not written
    # down yet.
    assert len(again) <= 2 * CONCURRENCY * BATCH
    assert content(result) == content(undisturbed)
    assert sum(result.requests.values()) == sum(undisturbed.requests.values()) == 4 * 30 + 4 + 8
    assert (
        result.requests["before an interruption"]
        >= (answers - 2 * CONCURRENCY * BATCH) * (4 if labels else 1) / 4
    )
    assert flow.workspace.accuracy("base") == result
    assert caches(flow) == []


def test_what_is_measured_is_kept_and_asked_again_only_when_it_is_gone(folder, capsys):
    flow = opened(folder, "free")
    path = flow.workspace.results("base") / "accuracy.json"
    with Endpoint() as endpoint:
        server = serving(flow, endpoint.url)
        first, asked = measure_accuracy(flow, server), len(endpoint.asked)
        assert measure_accuracy(flow, server) == first and len(endpoint.asked) == asked
        assert capsys.readouterr().out == "kept: results/base/accuracy.json, measured before\n"
        again = measure_accuracy_again(flow, server)
        assert len(endpoint.asked) == 2 * asked and again.tasks == first.tasks
        path.unlink()
        assert (
            content(measure_accuracy(flow, server)) == content(first)
            and len(endpoint.asked) == 3 * asked
        )


def test_only_a_task_that_is_new_is_scored(folder, undisturbed, capsys):
    """Two tasks, a third, one less, one with other data: each costs just its own prompts."""
    with Endpoint(labels=False) as endpoint:

        def asked(*tasks):
            flow, before = opened(folder, *tasks), len(endpoint.asked)
            result = measure_accuracy(flow, serving(flow, endpoint.url))
            assert list(result.tasks) == list(tasks) == result.protocol["accuracy"]["tasks"]
            return result, questions(endpoint.asked[before:])

        _, two = asked("word_analogies", "free")
        assert capsys.readouterr().out == "" and len(two) == 128
        whole, third = asked("word_analogies", "wikipedia", "free")
        assert capsys.readouterr().out == "kept: word_analogies, free of base, scored before\n"
        assert third and not two & third and content(whole) == content(undisturbed)
        assert sum(whole.requests.values()) == sum(undisturbed.requests.values())
        raw = json.loads((opened(folder).workspace.raw("base") / "lm-eval.json").read_text())
        assert raw["samples"].keys() == raw["results"].keys() == set(whole.tasks)
        fewer, none = asked("wikipedia", "free")
        assert none == set() and fewer.tasks == {
            name: whole.tasks[name] for name in ("wikipedia", "free")
        }
        texts = opened(folder).workspace.data / "wikipedia.jsonl"
        texts.write_text("\n".join(texts.read_text().splitlines()[1:]) + "\n")
        other, changed = asked("wikipedia", "free")
        assert changed and changed < third and other.tasks["free"] == whole.tasks["free"]


def test_the_runner_can_follow_how_much_is_answered(folder, tmp_path, monkeypatch):
    path, seen, flow = tmp_path / ".live.json", [], opened(folder)
    monkeypatch.setenv(live.VARIABLE, str(path))
    monkeypatch.setattr(live, "WRITE_SECONDS", 0.0)

    def look(choices):
        seen.append(live.read(path))
        return choices

    with Endpoint(alter=look) as endpoint:
        server = serving(flow, endpoint.url)
        measure_accuracy(flow, server)
        assert live.read(path) is None  # over
        measure_accuracy_again(flow, server)  # one request at a time
    assert list(dict.fromkeys((report.what, report.total, report.unit) for report in seen)) == [
        ("base: lm-eval", 120, "requests"),
        ("base: lm-eval", 4, "texts"),
        ("base: lm-eval", 8, "requests"),
        ("base, again: lm-eval", 120, "requests"),  # a text has no answer that could flip
        ("base, again: lm-eval", 8, "requests"),
    ]
    done = [
        report.done
        for report in seen
        if (report.what, report.total) == ("base, again: lm-eval", 120)
    ]
    assert done == sorted(done) and done[0] == 0 and done[-1] < 120 and len(set(done)) > 10


def questions(prompts):
    return {prompt for prompt in prompts if not finds_out([prompt])}


@pytest.mark.parametrize(
    ("labels", "refuse_after", "requests"),
    [
        (True, 23, {"before an interruption": 80, "one token": 40}),
        (
            False,
            41,
            {"before an interruption": 40, "echo: the engine gives no label probabilities": 80},
        ),
    ],
)
def test_a_server_that_fails_is_a_failure_and_what_it_answered_is_kept(
    folder, labels, refuse_after, requests
):
    flow = opened(folder, "word_analogies")
    with Endpoint(refuse_after=refuse_after, labels=labels) as endpoint:
        server = serving(flow, endpoint.url)
        with pytest.raises(FlowError, match=r"vLLM did not answer lm-eval: .*500"):
            measure_accuracy(flow, server)
        assert not (flow.workspace.results("base") / "accuracy.json").exists()
        answered, first, endpoint.refuse_after = set(endpoint.answered), len(endpoint.asked), None
        result = measure_accuracy(flow, server)
        assert result.tasks["word_analogies"].n == 30 and result.requests == requests
        assert len(answered) == refuse_after and not questions(answered) & questions(
            endpoint.asked[first:]
        )


def test_a_server_that_is_gone_is_noticed_within_a_minute(folder):
    with Endpoint() as endpoint:
        url = endpoint.url
    flow, started = opened(folder, "wikipedia"), time.monotonic()
    with pytest.raises(FlowError, match="vLLM did not answer lm-eval: ClientConnectorError"):
        measure_accuracy(flow, serving(flow, url))
    assert time.monotonic() - started < 60


def without_logprobs(choices):
    return [{**choice, "logprobs": None} for choice in choices]


def not_a_number(choices):
    for choice in choices:
        choice["logprobs"]["token_logprobs"][-2] = math.nan
    return choices


@pytest.mark.parametrize(
    ("task", "alter", "problem"),
    [
        ("word_analogies", lambda choices: choices[:-1], "1 of 2 prompts"),
        ("word_analogies", lambda choices: choices[1:], "1 of 2 prompts"),
        ("word_analogies", without_logprobs, "TypeError"),
        ("wikipedia", not_a_number, "not all finite"),
        (
            "free",
            lambda choices: [{**choice, "text": None} for choice in choices],
            "a prompt without text",
        ),
    ],
)
@pytest.mark.parametrize("labels", [True, False])
# several requests at a time, and one
@pytest.mark.parametrize("measure", [measure_accuracy, measure_accuracy_again])
def test_an_answer_that_is_not_whole_is_no_answer(folder, task, alter, problem, measure, labels):
    if (measure is measure_accuracy_again and task == "wikipedia") or (
        labels and task != "word_analogies"
    ):
        pytest.skip("a text is not measured again, and has no labels")
    flow = opened(folder, task)
    with Endpoint(alter=alter, labels=labels) as endpoint:
        if measure is measure_accuracy_again and problem.startswith("1 of 2"):
            problem = "0 of 1 prompts"
        with pytest.raises(FlowError, match=f"not whole: .*{problem}"):
            measure(flow, serving(flow, endpoint.url))
        endpoint.alter = lambda choices: choices
        assert set(measure(flow, serving(flow, endpoint.url)).tasks) == {task}


def cut_off(database):
    database.write_bytes(database.read_bytes()[:5000])


def overwritten(database):
    database.write_bytes(b"no database" * 1000)


def of_another_kind(database):
    from sqlitedict import SqliteDict

    with SqliteDict(str(database), autocommit=True) as answers:
        answers[next(iter(answers))] = {"no": "answer"}


@pytest.mark.parametrize("damage", [cut_off, overwritten, of_another_kind])
def test_a_damaged_cache_is_said_and_asked_again(folder, capsys, damage):
    flow = opened(folder, "word_analogies")
    with Endpoint(refuse_after=60, labels=False) as endpoint:
        server = serving(flow, endpoint.url)
        with pytest.raises(FlowError):
            measure_accuracy(flow, server)
        damage(*caches(flow))
        first, endpoint.refuse_after = len(endpoint.asked), None
        measure_accuracy(flow, server)
        assert len(questions(endpoint.asked[first:])) == 120
        assert "lm-eval asks everything again" in capsys.readouterr().out


def test_nothing_is_kept_where_others_may_write(folder, capsys):
    flow = opened(folder, "free")
    where = lm_eval_cache.cache_folder(flow.workspace)
    where.mkdir(parents=True)
    where.chmod(0o770)
    with Endpoint() as endpoint:
        assert measure_accuracy(flow, serving(flow, endpoint.url)).tasks["free"].n == 8
    assert caches(flow) == [] and "others may write" in capsys.readouterr().out


def test_another_model_or_protocol_does_not_take_these_answers(folder):
    with Endpoint(refuse_after=6) as endpoint:
        flow = opened(folder, "free")
        for change in (None, "limit", "model"):
            if change == "limit":
                flow = Flow.open(
                    "ci", SETTINGS | {"accuracy.tasks": ["free"], "accuracy.limit": 7}, folder
                )
            elif change == "model":
                (flow.workspace.model("base") / "model.safetensors").write_bytes(b"others")
            with pytest.raises(FlowError):
                measure_accuracy(flow, serving(flow, endpoint.url))
            endpoint.refuse_after = len(endpoint.asked) + 6
        assert len(caches(flow)) == 3


def test_no_key_is_written_down(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-nobody-may-write-down")
    flow = opened(folder, "free")
    with Endpoint() as endpoint:
        measure_accuracy(flow, serving(flow, endpoint.url))
    written = [path for path in flow.workspace.root.rglob("*") if path.is_file()]
    assert flow.workspace.raw("base") / "lm-eval.json" in written
    assert not [path for path in written if b"nobody-may-write-down" in path.read_bytes()]


def test_an_unknown_task_is_said_while_the_server_starts(folder):
    with pytest.raises(FlowError, match="Unknown task arc_hard"):
        prepare_evaluation(opened(folder, "arc_hard"))
