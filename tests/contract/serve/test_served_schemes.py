"""Checkpoints of llm-compressor that vLLM's CPU build serves: a scheme and an FP8 KV cache, and
models that are no Llama. Each is one server: its kernels are proved, and its scores measured.
"""

import math

import pytest
from support.compressed import build, candidates

from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.kernels import require_expected_kernel
from model_serve_flow.serve.launch import serve
from model_serve_flow.system.environments import environment

# kind of model -> its recipe, and the largest accepted mean difference of log-probabilities
SERVED = {
    "qwen2": ({"scheme": "W8A8", "kv_cache_scheme": "FP8"}, 0.1),
    "gemma3_text": ({"scheme": "FP8_DYNAMIC"}, 0.1),
}
VALUES_PER_TOKEN = 2 * 2 * 2 * 32  # layers, keys and values, heads, head size
TEXT = [1, *range(3, 60)]
SETTINGS = {"engine.max_model_len": 512, "engine.startup_seconds": 600}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    compress = environment("compress")
    if not compress.python.exists():
        pytest.skip("the environment compress is not built")
    folder = tmp_path_factory.mktemp("artifacts")
    build(compress.python, folder, {kind: recipe for kind, (recipe, _) in SERVED.items()})
    return folder


@pytest.mark.parametrize("kind", SERVED)
def test_the_engine_serves_it_quantised_and_gives_nearly_the_scores_of_the_base(artifacts, kind):
    recipe, most = SERVED[kind]
    flow = Flow.open("ci", candidates(recipe) | SETTINGS, artifacts / kind)
    folder = flow.workspace.model("a")
    with serve(flow, "a") as server:
        asked = {"model": "a", "prompt": TEXT, "max_tokens": 1, "echo": True, "logprobs": 0}
        with server.client() as client:
            answer = client.post("/v1/completions", json=asked).raise_for_status().json()
        facts = server.facts()
    require_expected_kernel(facts, "a", folder)
    assert facts.quantization == "compressed-tensors" and facts.kernels
    if "kv_cache_scheme" in recipe:
        # vLLM's log does not name the cache's type; twice as many tokens fit as in 16 bits
        room = flow.config.engine.kv_cache_gib << 30
        assert room / facts.kv_cache_tokens == pytest.approx(VALUES_PER_TOKEN, rel=0.1)
    scores = answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(TEXT)]
    wanted = base_scores(flow)
    differences = [abs(score - want) for score, want in zip(scores, wanted, strict=True)]
    assert math.fsum(differences) / len(differences) < most


def base_scores(flow: Flow) -> list[float]:
    """Computes the base's log-probabilities of the text's tokens with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(flow.workspace.model("base"), dtype="auto")
    tokens = torch.tensor([TEXT])
    with torch.inference_mode():
        found = model(tokens).logits[0, :-1].float().log_softmax(-1)
    return found.gather(1, tokens[0, 1:, None])[:, 0].tolist()
