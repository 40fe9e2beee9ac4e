"""Tiny random models of many architectures: made by llm-compressor, verified, and not hostile."""

import pytest
from support.tiny_models import configuration, save_model

from model_serve_flow.compress import compression
from model_serve_flow.compress.checkpoint import tensor_headers
from model_serve_flow.compress.compression import compress
from model_serve_flow.compress.quantise import with_texts
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.untrusted import refuse_hostile
from model_serve_flow.system.weights import weight_files

# kind -> linear layers of each decoder layer; the output layer stays as it is
KINDS = {
    "llama": 7,
    "mistral": 7,
    "qwen2": 7,
    "qwen3": 7,
    "gemma2": 7,
    "gemma3_text": 7,
    "opt": 6,
    "gpt_neox": 4,
    "mixtral": 4 + 4 * 3,
    "qwen3_moe": 4 + 4 * 3,
}


def opened(artifacts, recipe) -> Flow:
    return Flow.open("ci", {"candidates": [{"name": "a", "recipe": recipe}]}, artifacts)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_of_a_model_is_quantised(tmp_path, monkeypatch, kind):
    flow = opened(tmp_path, {"scheme": "W8A8"})
    save_model(flow.workspace.model("base"), configuration(kind))
    monkeypatch.setattr(compression, "generate_sample", lambda folder, **trust: "")
    made = compress(flow, "a", with_texts(None))
    # a router is no linear layer to transformers, and stays as it is
    assert made.quantized_layers == 2 * KINDS[kind]
    # transformers saves the output layer of GPT-NeoX under another name: embed_out
    assert made.ignored_layers == (() if kind == "gpt_neox" else ("lm_head",))
    refuse_hostile(flow.workspace.model("a"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_base_in_several_files_with_tied_embeddings_or_not(tmp_path, monkeypatch, tied):
    flow = opened(tmp_path, {"scheme": "W4A16", "group_size": 32})
    base = flow.workspace.model("base")
    save_model(base, configuration("llama", tie_word_embeddings=tied), shards=3)
    assert len(weight_files(base)) >= 3
    monkeypatch.setattr(compression, "generate_sample", lambda folder, **trust: "")
    made = compress(flow, "a", with_texts(None))
    assert (made.quantized_layers, made.ignored_layers) == (14, ("lm_head",))
    assert ("lm_head.weight" in tensor_headers(flow.workspace.model("a"))) == (not tied)
