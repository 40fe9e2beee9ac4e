"""GuideLLM and lm-eval, unchanged, against the own server."""

import json

import pytest
import torch
from support.stock_tools import lm_eval, run
from transformers import AutoModelForCausalLM


def test_guidellm_measures_it(server, tiny_model, tmp_path):
    data = {"kind": "synthetic_text", "prompt_tokens": 32, "output_tokens": 16}
    run(
        tmp_path,
        *("guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={server.url},model=tiny"),
        *("--tokenizer", f"kind=huggingface_auto,model={tiny_model}"),
        *("--data", json.dumps(data)),
        *("--profile", '{"kind":"concurrent","streams":[4]}'),
        *("--constraint", "kind=max_requests,count=20"),
        *("--output", "kind=json,path=report.json"),
    )
    [load] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    requests = load["requests"]
    assert len(requests["successful"]) == 20 and not requests["errored"]
    assert all(request["output_tokens"] == 16 for request in requests["successful"])
    assert all(request["time_to_first_token_ms"] > 0 for request in requests["successful"])


def likelihood(model, tokenizer, question, choice):
    """What transformers thinks of an answer."""
    begin, whole = (tokenizer.encode(text).ids for text in (question, question + choice))
    scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].detach(), dim=-1)
    places = range(len(begin), len(whole))
    return sum(float(scores[place - 1, whole[place]]) for place in places)


def test_lm_eval_scores_it_as_transformers_would(server, tiny_model, tokenizer, tmp_path):
    samples = lm_eval(tmp_path, server.url, "tiny", tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    for sample in samples:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        expected = [likelihood(model, tokenizer, question, choice) for choice in choices]
        assert found == pytest.approx(expected, abs=1e-3)
