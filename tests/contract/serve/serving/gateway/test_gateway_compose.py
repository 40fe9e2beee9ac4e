"""Rows 0.2 to 0.6, 0.10 and 0.11: `serving-from-scratch up` with compose.yaml and models.yaml."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from sklearn.datasets import load_digits
from support.gateway import PREDICTOR_KEY
from support.serving_server import gone, wait_until

HELD_OUT = 397
QUESTION = {"prompt": "The end of the process is", "max_tokens": 8}
GREEDY = {**QUESTION, "temperature": 0}


def text(reply):
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def requests_of(door):
    """How many requests each predictor got."""
    lines = door.client.get("/metrics").text.splitlines()
    counts = [line for line in lines if line.startswith("gateway_requests_total{")]
    return {line.split('predictor="')[1].split('"')[0]: float(line.split()[-1]) for line in counts}


def new_requests(door, ask):
    """Which predictors got how many requests while `ask` ran."""
    before = requests_of(door)
    ask()
    after = requests_of(door)
    return {n: after[n] - before.get(n, 0) for n in after if after[n] != before.get(n, 0)}


def test_stock_openai_client_chats_with_both_language_models(compose):
    assert [model.id for model in compose.openai.models.list()][:2] == ["smollm2", "smollm2-q4"]
    for model in ("smollm2", "smollm2-q4"):
        asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        whole = compose.openai.chat.completions.create(**asked, temperature=0)
        stream = compose.openai.chat.completions.create(**asked, temperature=0, stream=True)
        pieces = [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta]
        assert len(list(filter(None, pieces))) >= 2
        assert "".join(filter(None, pieces)) == whole.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "body", "predictor"),
    [
        ("/v1/completions", {"model": "smollm2", **GREEDY}, "smollm2 at"),
        ("/v1/completions", {"model": "smollm2-q4", **GREEDY}, "smollm2-q4 at"),
        ("/llm/v1/completions", GREEDY, "smollm2 at"),
        ("/llm/llama/v1/completions", GREEDY, "smollm2-q4 at"),
        ("/torch/image/predict", {"image": [0] * 64}, "digits at"),
        ("/image/predict", {"image": [0] * 64}, "digits-local in"),
        ("/predict?model=digits", {"image": [0] * 64}, "digits at"),
    ],
)
def test_a_request_reaches_its_predictor_only(compose, path, body, predictor):
    seen = new_requests(compose, lambda: compose.post(path, **body).raise_for_status())
    [(name, count)] = seen.items()
    assert name.startswith(predictor) and count == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/predict?model=other", "/nowhere/predict"])
def test_an_unknown_model_is_404_with_the_known_names(compose, path):
    reply = compose.post(path, model="other", **QUESTION)
    assert reply.status_code == 404
    known = "/torch/image" if "nowhere" in path else "smollm2-q4"
    assert known in reply.json()["error"]["message"]


@pytest.mark.parametrize("model", ["smollm2", "smollm2-q4"])
def test_predict_and_stream_say_the_same(compose, model):
    whole = compose.post(f"/predict?model={model}", **QUESTION).json()
    lines = compose.post(f"/stream?model={model}", **QUESTION).text.split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events.pop() == "[DONE]"
    pieces = [json.loads(event)["text"] for event in events]
    assert (
        "".join(pieces)
        == whole["text"]
        == text(compose.post("/v1/completions", model=model, **GREEDY))
    )
    assert len(pieces) >= 2


@pytest.mark.parametrize("path", ["/predict", "/stream"])
def test_no_model_or_an_empty_prompt_is_400(compose, path):
    assert compose.post(path, **QUESTION).status_code == 400
    for body in ({"prompt": ""}, {"prompt": 3}, {}):
        reply = compose.post(f"{path}?model=smollm2", **body)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "prompt"


def test_llama_answers_through_the_gateway_as_directly(compose):
    asked = {"model": "smollm2-q4", **GREEDY, "max_tokens": 24}
    ours = text(compose.post("/v1/completions", **asked))
    assert ours == text(compose.direct("LLAMA", "/v1/completions", **asked)) and len(ours) > 40


def test_a_wrong_key_is_401_everywhere(compose):
    for port, path in (("GATEWAY", "/v1/models"), ("LLAMA", "/v1/models"), ("OWN", "/v1/models")):
        url = f"http://127.0.0.1:{compose.ports[f'{port}_PORT']}{path}"
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert httpx.get(url, headers=headers, trust_env=False).status_code == 401
    # A client's key is no admin's key.
    assert compose.client.get("/admin/models").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        compose.openai.with_options(api_key=PREDICTOR_KEY).models.list()


def test_a_predictor_s_own_refusal_reaches_the_client(compose):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        compose.openai.completions.create(model="smollm2", prompt="a", max_tokens=10**6)


def test_held_out_digits(compose):
    images, digits = load_digits(return_X_y=True)
    images, digits = images[-HELD_OUT:].tolist(), digits[-HELD_OUT:]

    def ask(path):
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda image: compose.post(path, image=image).json(), images))
        return [reply["digit"] for reply in replies]

    batched, local = ask("/torch/image/predict"), ask("/image/predict")
    assert batched == local
    assert sum(batched == digits) >= 0.9 * HELD_OUT


def test_eight_images_at_once_run_in_few_batches(compose):
    with ThreadPoolExecutor(8) as pool:
        ask = pool.map(lambda _: compose.post("/torch/image/predict", image=[0] * 64), range(8))
        batches = {reply.json()["batch"] for reply in ask}
    assert len(batches) <= 3


@pytest.mark.parametrize(
    "image",
    [None, "x", [0] * 63, [0] * 63 + [17], [0] * 63 + ["0"], [0] * 63 + [math.nan], [True] * 64],
)
def test_a_bad_image_is_400_before_it_reaches_litserve(compose, image):
    content = json.dumps({"image": image})
    for path in ("/torch/image/predict", "/image/predict"):
        reply = compose.client.post(path, content=content)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "image"


def test_replicas_share_requests(compose):
    spec = {"name": "shared", "upstream": "smollm2", "key": "PREDICTOR_KEY"}
    spec["urls"] = [
        f"http://127.0.0.1:{compose.ports[port]}" for port in ("OWN_PORT", "OWN_2_PORT")
    ]
    assert compose.admin("POST", **spec).status_code == 201
    try:
        with ThreadPoolExecutor(8) as pool:
            ask = {"model": "shared", "prompt": "a", "max_tokens": 1}
            replies = list(pool.map(lambda _: compose.post("/v1/completions", **ask), range(300)))
        assert {reply.status_code for reply in replies} == {200}
        counts = [count for name, count in requests_of(compose).items() if name[:6] == "shared"]
        assert counts == [150, 150]
    finally:
        assert compose.admin("DELETE", "/shared").status_code == 200


def test_equal_prefixes_go_to_one_replica(compose):
    chosen = set()
    for start in range(8):
        prefix = f"{start} " + "The same beginning. " * 10

        def ask(prefix=prefix):
            for end in range(3):
                asked = {"model": "smollm2", "prompt": f"{prefix}{end}", "max_tokens": 1}
                compose.post("/v1/completions", **asked).raise_for_status()

        [(name, count)] = new_requests(compose, ask).items()
        assert count == 3
        chosen.add(name)
    assert len(chosen) == 2  # of two replicas: one choice in 128 would be the same eight times


def test_only_the_gateway_listens_beyond_this_machine(compose):
    import psutil

    children = [compose.process, *compose.process.children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for child in children
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


def test_a_gateway_needs_no_torch(compose):
    [gateway] = [p for p in compose.process.children() if "gateway" in p.cmdline()]
    assert not any("torch" in mapped.path for mapped in gateway.memory_maps())


def test_a_killed_service_starts_again(compose):
    """Last in this file: it is the only test that leaves the services other than they were."""
    name = f"digits at http://127.0.0.1:{compose.ports['DIGITS_PORT']}"
    [digits] = [p for p in compose.process.children() if "litserve" in " ".join(p.cmdline())]
    family = [digits, *digits.children(recursive=True)]
    digits.kill()
    wait_until(lambda: compose.healthy()[name] is False, 30)
    reply = compose.post("/torch/image/predict", image=[0] * 64)
    assert reply.status_code == 502 and "digits at" in reply.json()["error"]["message"]
    wait_until(lambda: compose.healthy()[name], 120)
    assert all(map(gone, family))
    assert compose.post("/torch/image/predict", image=[0] * 64).status_code == 200
