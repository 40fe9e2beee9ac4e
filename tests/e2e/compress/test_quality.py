"""The 4-bit candidate of the profile `ci` against round-to-nearest at the same bits and group size."""

import json
import math
import shutil

import pytest
from conftest import ARTIFACTS
from support.profiles import CI

from model_serve_flow.calibration import calibration_dataset
from model_serve_flow.checkpoint import inspect_checkpoint, verify_checkpoint
from model_serve_flow.compression import compress
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.recipes import recipe_modifiers

CANDIDATE = "w4a16-int4"


@pytest.fixture(scope="module")
def finished():
    flow = Flow.open(CI, {}, ARTIFACTS)
    assert flow.workspace.model("base").is_dir(), "run the flow first: pytest tests/e2e/notebook"
    return flow


@pytest.fixture(scope="module")
def chosen(finished, tmp_path_factory):
    """The candidate as the run made it; where the machine cannot serve it, made here by the same recipe."""
    made = finished.workspace.model(CANDIDATE)
    return made if made.is_dir() else make(finished, tmp_path_factory.mktemp("chosen"), {})


@pytest.fixture(scope="module")
def rounded(finished, tmp_path_factory):
    """The same scheme by round-to-nearest."""
    return make(finished, tmp_path_factory.mktemp("rounded"), {"algorithm": "rtn", "observer": None})


def make(finished, folder, changes):
    """The candidate by the recipe of `ci` with some of it changed, from the base and the text of the finished run."""
    from llmcompressor import oneshot
    from transformers import AutoTokenizer

    recipe = Flow.open("ci", {}, folder).config.candidate(CANDIDATE).recipe.model_dump() | changes
    flow = Flow.open("ci", {"candidates": [{"name": CANDIDATE, "recipe": recipe}]}, folder)
    flow.workspace.model("base").parent.mkdir(parents=True)
    flow.workspace.model("base").symlink_to(finished.workspace.model("base"))
    flow.workspace.data.symlink_to(finished.workspace.data)
    shutil.copytree(finished.workspace.results("base"), flow.workspace.results("base"))
    dataset, facts = calibration_dataset(flow, AutoTokenizer.from_pretrained(finished.workspace.model("base")))

    def quantise(model, recipe):
        text = {"dataset": dataset, "shuffle_calibration_samples": False} if recipe.needs_calibration else {}
        length = flow.config.calibration.max_sequence_length
        oneshot(model=model, recipe=recipe_modifiers(recipe), max_seq_length=length, **text)

    compress(flow, CANDIDATE, quantise, facts)
    return flow.workspace.model(CANDIDATE)


def perplexity(folder, texts):
    """Token perplexity over the texts, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loss = tokens = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            loss += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def test_the_4_bit_candidate_is_clearly_better_than_round_to_nearest(finished, chosen, rounded):
    lines = (finished.workspace.data / "wikipedia.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    bits = [inspect_checkpoint(folder).bits_per_weight for folder in (chosen, rounded)]
    assert bits[0] == pytest.approx(bits[1]), "not the same bits and group size"
    assert perplexity(chosen, texts) < 0.97 * perplexity(rounded, texts)


def test_a_corrupt_scale_is_found(finished, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "corrupt"
    shutil.copytree(finished.workspace.model("w8a8-int8"), folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FlowError, match=name.replace(".", r"\.")):
        verify_checkpoint(folder, finished.config.candidate("w8a8-int8").recipe)
