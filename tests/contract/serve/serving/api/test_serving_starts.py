"""What is refused at the start in one sentence, and who may use a server."""

import json
import os
import shutil
import socket
import subprocess

import pytest
from support.serving import save_llama
from support.serving_server import COMMAND

KEY = "canary-3f9c"


def serve(*arguments):
    command = [*COMMAND, "serve", "--length", "1024", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def refused(done, told):
    assert done.returncode == 1
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Serving" not in done.stdout


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)


def with_nan(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda folder: (folder / "chat_template.jinja").write_text("{% if"), "cannot be read"),
        (pickle_only, "safetensors"),
        (cut, "safetensors"),
        (with_nan, "model.norm.weight"),
        (lambda folder: change_config(folder, auto_map={"a": "b"}), "auto_map"),
        (lambda folder: change_config(folder, architectures=["Other"]), "Other"),
    ],
    ids=["missing", "tokenizer", "template", "pickle", "truncated", "nan", "code", "architecture"],
)
def test_a_checkpoint_that_cannot_be_served(tiny_model, tmp_path, damage, told):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    refused(serve(folder, "--port", "0"), told)


def test_more_ranks_than_cores(tiny_model):
    refused(
        serve(tiny_model, "--port", "0", "--parallel", "tensor", "--ranks", "1000"),
        "1000 ranks need as many cores",
    )


def other_tokens(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    tokens = content["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "tokenizer.json cannot be read"),
        (pickle_only, "The draft model: "),
        (lambda folder: save_llama(folder, vocabulary=500), "500 tokens; the model has 512"),
        (other_tokens, "has other tokens than the model"),
    ],
    ids=["missing", "pickle", "vocabulary", "tokens"],
)
def test_a_draft_model_that_cannot_guess(tiny_model, tmp_path, damage, told):
    draft = shutil.copytree(tiny_model, tmp_path / "draft")
    damage(draft)
    refused(serve(tiny_model, "--port", "0", "--proposer", "draft", "--draft", draft), told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--proposer", "draft"], "Give both --proposer draft and --draft FOLDER"),
        (["--draft", "folder"], "Give both --proposer draft and --draft FOLDER"),
        (
            ["--proposer", "draft", "--draft", "folder", "--parallel", "tensor"],
            "TensorParallel has no draft model",
        ),
    ],
)
def test_a_draft_model_that_is_not_wanted(tiny_model, options, told):
    refused(serve(tiny_model, "--port", "0", *options), told)


def test_a_port_that_is_taken(tiny_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(serve(tiny_model, "--port", port), f"Port {port}")


@pytest.mark.parametrize("option", ["--strategy", "--cache", "--attention", "--precision"])
def test_an_unknown_choice_is_refused_with_the_known_ones(tiny_model, option):
    refused(serve(tiny_model, "--port", "0", option, "magic"), "magic")


def test_doctor_says_what_it_finds(tiny_model):
    command = [*COMMAND, "doctor", str(tiny_model), "--length", "1024"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "vocabulary: 512" in told and "loaded in" in told


def test_a_key_is_asked_for_and_shown_nowhere(start):
    with start(key=KEY) as server:
        good = server.client.headers.pop("authorization")
        for wrong in (None, "Bearer x", f"Bearer {KEY}x", KEY.encode() + b"\xff", f"Basic {KEY}"):
            headers = {} if wrong is None else {"Authorization": wrong}
            for path in ("/generate", "/v1/completions"):
                reply = server.client.post(path, json={"prompt": "a"}, headers=headers)
                assert reply.status_code == 401, wrong
                assert KEY not in reply.text
            assert server.client.get("/v1/models", headers=headers).status_code == 401
        assert server.healthy()
        server.client.headers["authorization"] = good
        assert server.generate("a")
        seen = [server.client.get(path).text for path in ("/facts", "/metrics", "/health")]
        family = [server.process, server.worker]
        seen += [" ".join(process.cmdline()) for process in family]
        seen += [str(server.worker.environ()), server.log.read_text()]
        assert not any(KEY in text for text in seen)
