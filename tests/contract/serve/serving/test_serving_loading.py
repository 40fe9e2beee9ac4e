"""A checkpoint that cannot be served is refused in one sentence."""

import json
import shutil

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.model.loading import ModelManager, check_memory
from serving_from_scratch.model.row import Row


@pytest.fixture
def checkpoint(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "model")


def load(folder, **options):
    return ModelManager().runner(ModelOptions(str(folder), "float32", length=64, **options))


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def put_nan(tensors):
    tensors["model.norm.weight"][3] = float("nan")


def drop(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def reshape(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()


def rope(rope_type):
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": rope_type}}


def old_rope(folder):
    """The spelling of old checkpoints."""
    change_config(folder, rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (shutil.rmtree, "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
        (pickled, "only pytorch_model.bin. Weights must be"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (truncate, "no complete safetensors file"),
        (lambda folder: change_config(folder, auto_map={"a": "b"}), "its own code"),
        (
            lambda folder: change_config(folder, architectures=["GPT2LMHeadModel"]),
            "GPT2LMHeadModel",
        ),
        (lambda folder: change_config(folder, hidden_act="gelu"), "hidden_act 'gelu'"),
        (
            lambda folder: change_config(folder, **rope("yarn")),
            "rope_type 'yarn'. This engine computes 'default' or 'llama3'",
        ),
        (old_rope, "rope_type 'linear'"),
        (lambda folder: change_config(folder, quantization_config={}), "quantization_config"),
        (lambda folder: change_config(folder, intermediate_size=97), "config.json asks for"),
        (lambda folder: change_weights(folder, put_nan), "model.norm.weight has values"),
        (lambda folder: change_weights(folder, drop), "no tensor model.layers.1.mlp.up_proj"),
        (lambda folder: change_weights(folder, reshape), "has the shape \\(95, 64\\)"),
    ],
)
def test_a_damaged_checkpoint_is_refused(checkpoint, damage, told):
    damage(checkpoint)
    with pytest.raises(ServingError, match=told):
        load(checkpoint)


@pytest.mark.parametrize("field", ["precision", "cache", "attention"])
def test_an_unknown_name_is_refused_with_the_known_ones(tiny_llama, field):
    known = {"precision": "float32", "length": 64}
    options = ModelOptions(str(tiny_llama), **(known | {field: "fast"}))
    with pytest.raises(ServingError, match=f"{field} is 'fast'. Choose one of"):
        ModelManager().runner(options)


@pytest.mark.parametrize("cache", ["slots", "paged"])
def test_a_cache_that_does_not_fit_into_memory_is_refused(tiny_llama, cache):
    told = r"The cache would need \d+\.\d GB; \d+\.\d GB are free\. End other programs"
    with pytest.raises(ServingError, match=told):
        load(tiny_llama, cache=cache, places=10**9)


def test_weights_that_do_not_fit_into_memory_are_refused():
    free = psutil.virtual_memory().available
    with pytest.raises(ServingError, match="The weights would need"):
        check_memory("The weights", 2 * free)
    check_memory("The weights", free // 2)


def test_texts_longer_than_the_model_was_made_for_are_refused(tiny_llama):
    with pytest.raises(ServingError, match="length is 1025 tokens; the model was made for 1024"):
        ModelManager().runner(ModelOptions(str(tiny_llama), "float32", length=1025))


def test_a_model_says_what_it_is(tiny_llama):
    facts = load(tiny_llama).facts
    stored = load_file(tiny_llama / "model.safetensors")
    assert facts.parameters == sum(tensor.numel() for tensor in stored.values())
    assert (facts.vocabulary, facts.max_length, facts.eos, facts.hidden) == (512, 1024, (2,), 64)
    assert facts.kv_bytes == 2 * 2 * 2 * 16 * 4  # K and V, layers, heads, width, bytes


def test_the_least_recently_used_model_is_evicted(tiny_llama, tmp_path):
    manager = ModelManager(keep=2)
    folders = [str(shutil.copytree(tiny_llama, tmp_path / name)) for name in "abc"]
    options = [ModelOptions(folder, "float32", length=64) for folder in folders]
    first = manager.runner(options[0])
    manager.runner(options[1])
    assert manager.runner(options[0]).model is first.model
    manager.runner(options[2])
    assert manager.loaded == ((folders[0], "float32"), (folders[2], "float32"))
    assert manager.runner(options[0]).cache is not first.cache


@pytest.mark.parametrize("kernels", [True, False], ids=["with oneDNN", "without"])
def test_packed_and_plain_weights_give_the_same_scores(tiny_llama, monkeypatch, kernels):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: kernels)
    row = Row(Step((Chunk("a", 0, 0, tuple(range(3, 40)), sample=True),)))
    packed, plain = (load(tiny_llama, packed=packed) for packed in (True, False))
    assert packed.model.head.is_mkldnn is kernels and not plain.model.head.is_mkldnn
    logits = [
        each.model.logits(each.model.forward(row, each.cache, each.backend))
        for each in (packed, plain)
    ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_scores_that_are_no_numbers_end_a_step(checkpoint):
    runner = load(checkpoint)
    runner.model.norm[0] = torch.inf
    with pytest.raises(ServingError, match="scores are not finite"):
        runner.run(Step((Chunk("a", 0, 0, (5,), sample=True),)))
