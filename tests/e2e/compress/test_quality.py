"""The 4-bit candidate of the finished run against round-to-nearest at the same bits and group
size.
"""

import json
import math
import shutil

import pytest
from conftest import ARTIFACTS
from support.profiles import CI, HAS_INT4, INT4_MISSING

from model_serve_flow.compress.checkpoint import inspect_checkpoint
from model_serve_flow.compress.compression import compress
from model_serve_flow.compress.recipes import recipe_modifiers
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow

CANDIDATE = "w4a16-int4"


@pytest.fixture(scope="module")
def finished():
    flow = Flow.open(CI, {}, ARTIFACTS)
    assert flow.workspace.model("w8a8-int8").is_dir(), (
        "run the flow first: pytest tests/e2e/notebook"
    )
    return flow


@pytest.fixture(scope="module")
def rounded(finished, tmp_path_factory):
    """The same scheme by round-to-nearest."""
    from llmcompressor import oneshot

    recipe = finished.config.candidate(CANDIDATE).recipe.model_dump() | {
        "algorithm": "rtn",
        "observer": None,
    }
    override = {"candidates": [{"name": CANDIDATE, "recipe": recipe}]}
    flow = Flow.open(CI, override, tmp_path_factory.mktemp("rounded"))
    flow.workspace.model("base").parent.mkdir(parents=True)
    flow.workspace.model("base").symlink_to(finished.workspace.model("base"))
    compress(
        flow, CANDIDATE, lambda model, recipe: oneshot(model=model, recipe=recipe_modifiers(recipe))
    )
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


@pytest.mark.skipif(not HAS_INT4, reason=INT4_MISSING)
def test_the_4_bit_candidate_is_clearly_better_than_round_to_nearest(finished, rounded):
    lines = (finished.workspace.data / "wikipedia.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    chosen, rough = (
        inspect_checkpoint(finished.workspace.model(CANDIDATE)),
        inspect_checkpoint(rounded),
    )
    assert chosen.bits_per_weight == pytest.approx(rough.bits_per_weight), (
        "not the same bits and group size"
    )
    assert perplexity(finished.workspace.model(CANDIDATE), texts) < 0.97 * perplexity(
        rounded, texts
    )


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
