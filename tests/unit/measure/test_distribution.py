"""Next-token distributions from an endpoint that answers as vLLM 0.32 does."""

import json
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

import factories
import httpx
import pytest
from support.engines import VLLM

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.measure.distribution import (
    Document,
    held_out_documents,
    measure_distribution,
    token_tops,
)
from model_serve_flow.report.notebook_tables import divergence_table
from model_serve_flow.serve.engine import Engine
from model_serve_flow.serve.vllm import engine_arguments
from model_serve_flow.system import live

K = 3


def position(ids, actual=None):
    """vLLM's entry of one token: the likeliest by rank,
    after the token that came if it is not among them.
    """
    entries = (
        {}
        if actual is None
        else {str(actual): {"logprob": -9.5, "rank": 4711, "decoded_token": "x"}}
    )
    for rank, token in enumerate(ids, 1):
        entries[str(token)] = {"logprob": -0.1234567 - rank, "rank": rank, "decoded_token": "x"}
    return entries


@dataclass
class Endpoint:
    """Stands in for a running server: scores prompts, and remembers them in the order they came."""

    folder: Path
    status: int = 200
    model_name: str = "base"
    log: Path = Path("vllm.log")
    prompts: list = field(default_factory=list)
    together: int = 0
    most_together: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    engine: Engine = VLLM
    told: EngineFacts = field(default_factory=lambda: factories.engine("base"))
    arguments: tuple | None = None

    def facts(self):
        return self.told

    def client(self, timeout):
        return httpx.Client(transport=httpx.MockTransport(self.answer), base_url="http://server")

    def answer(self, request):
        body = json.loads(request.content)
        with self.lock:
            self.prompts.append(body["prompt"])
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        assert (body["prompt_logprobs"], body["max_tokens"], body["temperature"]) == (K, 1, 0)
        if self.status != 200:
            return httpx.Response(
                self.status, json={"message": "Requested prompt logprobs of 21 > 20"}
            )
        scored = [None, *(position([token, 90, 91], actual=95) for token in body["prompt"][1:])]
        with self.lock:
            self.together -= 1
        return httpx.Response(200, json={"choices": [{"text": "", "prompt_logprobs": scored}]})


@pytest.fixture
def folder(tmp_path):
    """A workspace with a base model that has weights, a word tokenizer and four articles."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base = tmp_path / "ci" / "models" / "base"
    base.mkdir(parents=True)
    (base / "model.safetensors").write_bytes(b"weights")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(base)
    data = tmp_path / "ci" / "data"
    data.mkdir()
    rows = [{"id": f"a{i}", "text": " ".join(f"w{i + j}" for j in range(17 + i))} for i in range(4)]
    (data / "wikipedia.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def opened(folder, **overrides):
    settings = {"accuracy.distribution": {"documents": 3, "tokens": 20, "top_k": K}}
    return Flow.open(
        "ci", settings | {key.replace("__", "."): value for key, value in overrides.items()}, folder
    )


def test_the_k_likeliest_are_kept_by_rank_and_the_token_that_came_is_not_one_more():
    entry = dict(reversed(position([7, 3, 5], actual=2).items()))
    tops = token_tops(Document("d", (1, 2, 7)), [None, entry, position([9, 8, 7], actual=4)], K)
    assert tops.top_ids == ((7, 3, 5), (9, 8, 7))
    assert tops.own_logprobs == (-9.5, -3.123457)
    assert tops.top_logprobs[0] == (-1.123457, -2.123457, -3.123457)


@pytest.mark.parametrize(
    ("positions", "problem"),
    [
        ([None, position([1, 2, 3])], "2 positions of 3 tokens"),
        ([position([1, 2, 3])] * 3, "3 positions of 3 tokens"),
        (
            [None, position([1, 2, 3]), position([1, 2], actual=3)],
            "2 of the 3 likeliest tokens at place 2",
        ),
        ([None, position([1, 2, 3]), position([1, 2, 4])], "nothing of token 7 at place 2"),
    ],
)
def test_an_answer_of_another_form_is_refused(positions, problem):
    with pytest.raises(FlowError, match=problem):
        token_tops(Document("d", (1, 2, 7)), positions, K)


def test_documents_are_the_first_ones_cut_and_short_ones_as_they_are(folder):
    documents = held_out_documents(
        opened(folder, accuracy__distribution__tokens=18), folder / "ci" / "models" / "base"
    )
    assert [(document.id, len(document.tokens)) for document in documents] == [
        ("a0", 17),
        ("a1", 18),
        ("a2", 18),
    ]
    assert documents[1].tokens[:3] == (1, 2, 3)


def test_too_few_or_too_short_documents(folder):
    model = folder / "ci" / "models" / "base"
    with pytest.raises(FlowError, match="documents is 5, but there are 4"):
        held_out_documents(opened(folder, accuracy__distribution__documents=5), model)
    (folder / "ci" / "data" / "wikipedia.jsonl").write_text(
        '{"id": "a", "text": "w1"}\n{"id": "b", "text": "w1"}\n'
    )
    with pytest.raises(FlowError, match="document a has 1 tokens"):
        held_out_documents(opened(folder, accuracy__distribution__documents=2), model)
    (folder / "ci" / "data" / "wikipedia.jsonl").unlink()
    with pytest.raises(FlowError, match=r"wikipedia\.jsonl is missing"):
        held_out_documents(opened(folder), model)


def test_the_second_measurement_asks_in_reverse_order_and_keeps_the_order_of_the_first(folder):
    flow = opened(
        folder, accuracy__concurrency=1, accuracy__again={"concurrency": 1, "batch_size": 1}
    )
    one, two = Endpoint(flow.workspace.model("base")), Endpoint(flow.workspace.model("base"))
    first, second = measure_distribution(flow, one), measure_distribution(flow, two, again=True)
    assert two.prompts == one.prompts[::-1] and len(one.prompts) == 3
    assert [document.id for document in first.documents] == ["a0", "a1", "a2"]
    assert first.documents == second.documents and first.protocol == second.protocol
    assert (
        flow.workspace.distribution("base") == first
        and flow.workspace.distribution_again() == second
    )
    assert first.k == K and first.documents[0].top_ids[0] == (first.documents[0].tokens[1], 90, 91)


def test_the_runner_can_follow_how_many_documents_are_done(folder, monkeypatch):
    reports = []
    monkeypatch.setattr(live, "report", lambda *report: reports.append(report))
    flow = opened(folder)
    measure_distribution(flow, Endpoint(flow.workspace.model("base")), again=True)
    assert reports == [("base, again: distributions", done, 3, "documents") for done in range(4)]


def test_no_more_requests_at_a_time_than_the_profile_says(folder):
    flow = opened(folder, accuracy__concurrency=2)
    endpoint = Endpoint(flow.workspace.model("base"))
    measure_distribution(flow, endpoint)
    assert 1 <= endpoint.most_together <= 2


def test_a_server_that_was_started_for_something_else_is_refused(folder):
    flow = opened(folder)
    right, wrong = (
        tuple(engine_arguments(flow.config, purpose)) for purpose in ("accuracy", "performance")
    )
    measure_distribution(flow, Endpoint(flow.workspace.model("base"), arguments=right))
    endpoint = Endpoint(flow.workspace.model("base"), arguments=wrong)
    with pytest.raises(
        FlowError, match=r"--no-enable-prefix-caching.* is on one side only.*purpose='accuracy'"
    ):
        measure_distribution(flow, endpoint)
    assert endpoint.prompts == []


def test_the_protocol_tells_other_text_and_other_tokens_apart(folder):
    flow = opened(folder)
    first = measure_distribution(flow, Endpoint(flow.workspace.model("base")))
    path = flow.workspace.data / "wikipedia.jsonl"
    path.write_text(path.read_text().replace("w5", "w6"))
    second = measure_distribution(flow, Endpoint(flow.workspace.model("base")))
    assert {key for key in first.protocol if first.protocol[key] != second.protocol[key]} == {
        "documents_sha256"
    }


def test_a_result_of_the_same_model_protocol_and_kernels_is_kept(folder, capsys):
    flow = opened(folder)
    path = flow.workspace.results("base") / "distribution.json"
    first = measure_distribution(flow, Endpoint(flow.workspace.model("base")))
    written, later = path.read_bytes(), Endpoint(flow.workspace.model("base"))
    assert measure_distribution(flow, later) == first and later.prompts == []
    assert path.read_bytes() == written
    said = "kept: results/base/distribution.json, measured before\n"
    assert capsys.readouterr().out == said


def other_weights(path, endpoint):
    (endpoint.folder / "model.safetensors").write_bytes(b"others!")


def other_engine(path, endpoint):
    endpoint.told = endpoint.told.model_copy(update={"version": "0.33.0"})


def other_kernels_then(path, endpoint):
    document = json.loads(path.read_text())
    document["engine"] |= {"quantization": "compressed-tensors", "kernels": ["X for Y"]}
    path.write_text(json.dumps(document))


def other_name(path, endpoint):
    document = json.loads(path.read_text())
    document["model"]["name"] = "w8a8-int8"
    path.write_text(json.dumps(document))


def edited_protocol(path, endpoint):
    document = json.loads(path.read_text())
    document["protocol"]["seed"] += 1
    path.write_text(json.dumps(document))


def cut_off(path, endpoint):
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("change", [other_weights, other_engine, other_kernels_then, other_name])
def test_a_result_of_something_else_is_measured_again_and_replaced(folder, capsys, change):
    flow, endpoint = opened(folder), Endpoint(folder / "ci" / "models" / "base")
    measure_distribution(flow, endpoint)
    change(flow.workspace.results("base") / "distribution.json", endpoint)
    again = measure_distribution(flow, endpoint)
    assert len(endpoint.prompts) == 6 and flow.workspace.distribution("base") == again
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [edited_protocol, cut_off])
def test_a_damaged_result_is_said_measured_again_and_replaced(folder, capsys, damage):
    flow, endpoint = opened(folder), Endpoint(folder / "ci" / "models" / "base")
    measure_distribution(flow, endpoint)
    damage(flow.workspace.results("base") / "distribution.json", endpoint)
    again = measure_distribution(flow, endpoint)
    assert len(endpoint.prompts) == 6 and flow.workspace.distribution("base") == again
    assert capsys.readouterr().out.startswith(
        "damaged: results/base/distribution.json, measured again and replaced. "
    )


def test_a_refusal_shows_what_the_server_said(folder):
    flow = opened(folder)
    with pytest.raises(
        FlowError, match=r"refused to score document a. \(400\).*prompt logprobs of 21 > 20"
    ):
        measure_distribution(flow, Endpoint(flow.workspace.model("base"), status=400))


def test_a_profile_without_distributions_asks_nothing(folder):
    flow = Flow.open("ci", {"accuracy.distribution": None}, folder)
    assert measure_distribution(flow, server=None) is None
    flow = opened(folder, accuracy__again=None)
    assert measure_distribution(flow, server=None, again=True) is None


def test_the_table_shows_agreement_and_leaves_out_what_was_not_measured():
    base = factories.distribution()
    table = divergence_table(
        base, {"itself": base, "w4a16-int4": factories.distribution("w4a16-int4"), "none": None}
    )
    assert list(table["model"]) == ["itself", "w4a16-int4"]
    assert table["same likeliest token"][0] == "100.0%"
    assert float(table["same likeliest token"][1].rstrip("%")) < 90
    divergences = [float(value) for value in table.iloc[:, -1]]
    assert divergences[0] == 0 and math.isfinite(divergences[1]) and divergences[1] > 0.01
    assert divergence_table(None, {"w8a8-int8": None}).empty


def test_the_table_refuses_other_documents():
    other = factories.distribution("w4a16-int4")
    fewer = other.model_copy(update={"documents": other.documents[1:]})
    with pytest.raises(FlowError, match="w4a16-int4 are not of the base's documents"):
        divergence_table(factories.distribution(), {"w4a16-int4": fewer})
