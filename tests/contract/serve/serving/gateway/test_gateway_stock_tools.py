"""GuideLLM and lm-eval, unchanged, through the gateway; and vLLM behind it, with the stock client.

All use the services of compose.yaml; vLLM starts with the file's own command.
"""

import openai
import pytest
import torch
from support.gateway import EXAMPLE, KEY, PREDICTOR_KEY
from support.profiles import CI
from support.serving import save_llama
from support.serving_server import wait_until, write_tokenizer
from support.stock_tools import lm_eval

from model_serve_flow.flow.flow import Flow
from model_serve_flow.measure.guidellm.generator import load_generator
from model_serve_flow.measure.load_points import measure_load
from model_serve_flow.serve.endpoint import Endpoint
from model_serve_flow.system.environments import environments_folder
from serving_from_scratch.gateway.compose import read_services

LOAD = {
    "concurrency": [2],
    "prompt_tokens": 16,
    "output_tokens": 8,
    "seconds": 1,
    "warmup_seconds": 0,
    "min_requests": 4,
    "repeats": 1,
    "blocks": 1,
    "slo": None,
}
VLLM = "smollm2-vllm"  # its name in models.yaml
ASKED = {"model": VLLM, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
PARSER = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def test_guidellm_measures_through_the_gateway(compose, tiny_model, tmp_path):
    flow = Flow.open(CI, {f"performance.{key}": LOAD[key] for key in LOAD}, tmp_path)
    url = str(compose.client.base_url).rstrip("/")
    endpoint = Endpoint(url, "smollm2", KEY, tiny_model)
    with load_generator(flow) as generator:
        [point] = measure_load(flow.config, endpoint, generator, tmp_path / "load.json")
    assert point.valid, point.invalid_reason
    assert point.completed_requests >= 4 and point.output_tokens == 8
    assert point.ttft_ms.p50 > 0 and point.itl_ms.p50 > 0


def test_lm_eval_gives_the_same_scores_through_the_gateway_as_directly(
    compose, tiny_model, tmp_path
):
    ways = {"GATEWAY_PORT": KEY, "OWN_PORT": PREDICTOR_KEY}
    found = []
    for port, key in ways.items():
        folder = tmp_path / port
        folder.mkdir()
        url = f"http://127.0.0.1:{compose.ports[port]}"
        samples = lm_eval(folder, url, "smollm2", tiny_model, concurrent=1, key=key)
        found.append([(each["doc_id"], each["filtered_resps"], each["acc"]) for each in samples])
    through, directly = found
    assert through == directly and len(through) == 2


@pytest.fixture(scope="module")
def vllm(compose, tmp_path_factory):
    """The service `vllm` of compose.yaml, with a model whose heads its CPU kernels know."""
    torch.manual_seed(0)
    base = save_llama(tmp_path_factory.mktemp("model") / "base", head_dim=32)
    write_tokenizer(base)
    settings = {name: str(port) for name, port in compose.ports.items()}
    settings |= {"BASE": str(base), "LENGTH": "1024", "PREDICTOR_KEY": PREDICTOR_KEY}
    services = read_services(EXAMPLE / "compose.yaml", ("vllm",), settings)
    [service] = [each for each in services if each.name == "vllm"]
    service.command.extend(PARSER)  # without it vLLM refuses every request with tools
    service.start(environments_folder())
    try:
        name = f"{VLLM} at http://127.0.0.1:{compose.ports['VLLM_PORT']}"
        wait_until(lambda: service.child.poll() is not None or compose.healthy()[name], 300)
        assert service.child.poll() is None
        yield compose
    finally:
        service.child.end()


def test_vllm_answers_through_the_gateway_as_directly(vllm):
    asked = {"model": VLLM, "prompt": "The end", "max_tokens": 8, "temperature": 0}
    by_model = vllm.post("/v1/completions", **asked)
    by_path = vllm.post("/llm/vllm/v1/completions", **asked)
    directly = vllm.direct("VLLM", "/v1/completions", **asked)
    assert directly.status_code == 200
    assert by_model.json()["choices"] == by_path.json()["choices"] == directly.json()["choices"]


def test_a_chat_of_vllm_streams_through_the_gateway(vllm):
    create = vllm.openai.chat.completions.create
    whole = create(**ASKED, temperature=0)
    pieces = [part.choices[0].delta.content for part in create(**ASKED, temperature=0, stream=True)]
    assert len(list(filter(None, pieces))) >= 2
    assert "".join(filter(None, pieces)) == whole.choices[0].message.content


def test_a_function_call_and_a_refusal_of_vllm_reach_the_client(vllm):
    create = vllm.openai.chat.completions.create
    choice = {"type": "function", "function": {"name": "weather"}}
    asked = {**ASKED, "max_tokens": 64, "temperature": 0, "tools": TOOLS, "tool_choice": choice}
    [call] = create(**asked).choices[0].message.tool_calls
    directly = vllm.direct("VLLM", "/v1/chat/completions", **asked).json()
    [expected] = directly["choices"][0]["message"]["tool_calls"]
    assert call.function.name == "weather"
    assert call.function.arguments == expected["function"]["arguments"] != ""
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        create(**ASKED | {"max_tokens": 10**6})
