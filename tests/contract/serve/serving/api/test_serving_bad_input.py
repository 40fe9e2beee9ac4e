"""Whatever a client sends: an answer in OpenAI's form, never a 500, never silence."""

import json
import math
import os
import random

import pytest

FUZZED = int(os.environ.get("SERVING_FUZZED", "300"))
PATHS = {
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/embeddings": {"input": "a"},
    "/generate": {"prompt": ["a", "b"], "max_tokens": 2},
    "/basic_generate": {"prompt": "a", "max_tokens": 2},
    "/generate_stream": {"prompt": "a", "max_tokens": 2},
    "/predict?model=tiny": {"prompt": "a", "max_tokens": 2},
    "/stream?model=tiny": {"prompt": "a", "max_tokens": 2},
    "/generate_vllm": {"prompt": "a"},
}
KNOWN = (
    "model prompt max_tokens temperature top_p top_k n seed stop ignore_eos stream echo logprobs "
    "top_logprobs messages tools tool_choice response_format input encoding_format dimensions "
    "stream_options user timeout best_of suffix logit_bias max_completion_tokens"
)
FIELDS = [*KNOWN.split(), "surprise"]
VALUES = [
    None,
    True,
    0,
    -1,
    5,
    1e400,
    10**30,
    float("nan"),
    "",
    "a",
    "\0",
    "\ud800",
    "<|im_end|>",
    "x" * 3000,
    [],
    ["a"] * 20,
    [""],
    [1, 2, 3],
    [-1],
    [512],
    [[1], []],
    [10**20],
    [["a"]],
    {},
    {"a": {"b": 1}},
    {"role": "user"},
    [{"role": "robot", "content": "a"}],
    [{"role": "tool", "content": "a"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}],
    {"type": "json_schema"},
    {"include_usage": True},
]


def checked(reply):
    """An error in OpenAI's form, or an answer."""
    assert reply.status_code < 500 or reply.status_code == 503, reply.text
    if reply.status_code >= 400:
        error = reply.json()["error"]
        assert error["message"] and error["type"] and error["code"] == reply.status_code
    return reply


LEAST, MOST = "Input should be greater than or equal to", "Input should be less than or equal to"
# Of /generate: a field, its value, and the words about its limit.
FIELD_LIMITS = [
    ("max_tokens", 0, f"{LEAST} 1; it was 0"),
    ("max_tokens", -3, f"{LEAST} 1; it was -3"),
    ("temperature", -1, f"{LEAST} 0; it was -1"),
    ("temperature", math.inf, "finite number; it was inf"),
    ("temperature", "hot", "'hot'"),
    ("top_p", 0, "greater than 0; it was 0"),
    ("top_p", 1.5, f"{MOST} 1; it was 1.5"),
    ("top_k", -2, f"{LEAST} -1; it was -2"),
    ("stop", ["x"] * 20, "at most 4 items"),
    ("stop", [""], "at least 1 character; it was ''"),
    ("stop", "", "at least 1 character; it was ''"),
    ("stop", 5, "list; it was 5"),
    ("seed", 2**63, f"less than {2**63}; it was {2**63}"),
    ("seed", -1, f"{LEAST} 0; it was -1"),
    ("surprise", 1, "not permitted; it was 1"),
]
BAD = [
    ("/generate", {"prompt": ""}, 400, "no tokens"),
    ("/generate", {"prompt": []}, 400, "prompt"),
    ("/generate", {"prompt": "a", "max_tokens": 2000}, 400, "2001 tokens; the limit is 1024"),
    ("/generate", {"prompt": "a" * 10**6}, 400, "1000000 characters"),
    ("/generate", {"prompt": [600]}, 400, "token id 600"),
    ("/generate", {"prompt": "a", "model": "other"}, 404, "'tiny'"),
    ("/generate", {"prompt": "\ud800"}, 400, ""),
    ("/v1/completions", {"prompt": "a", "n": 5}, 400, f"n: {MOST} 4; it was 5"),
    ("/v1/completions", {"prompt": "a", "logprobs": 21}, 400, f"logprobs: {MOST} 20; it was 21"),
    ("/v1/completions", {"prompt": "a", "logprobs": -1}, 400, f"logprobs: {LEAST} 0; it was -1"),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
    ("/v1/completions", {"prompt": "a", "presence_penalty": 1.0}, 400, "presence_penalty"),
    ("/v1/chat/completions", {"messages": [{"role": "x", "content": "a"}]}, 400, "'x'"),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "'tool'"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/nowhere", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "told"), BAD)
def test_a_refusal_names_field_value_and_limit(server, path, body, status, told):
    reply = checked(server.client.post(path, content=json.dumps(body), headers=JSON))
    assert reply.status_code == status, reply.text
    assert told in reply.json()["error"]["message"]


@pytest.mark.parametrize(("field", "value", "told"), FIELD_LIMITS)
def test_a_wrong_field_is_named_with_value_and_limit(server, field, value, told):
    body = json.dumps({"prompt": "a", field: value})
    reply = checked(server.client.post("/generate", content=body, headers=JSON))
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"].startswith(field)
    assert error["message"].startswith(field) and told in error["message"]


def test_everything_at_its_limit_is_taken(server):
    limits = {"temperature": 2.0, "top_p": 1, "top_k": -1, "seed": 2**63 - 1, "stop": ["\0"] * 4}
    reply = server.post("/v1/completions", prompt="a", max_tokens=2, logprobs=20, n=4, **limits)
    assert reply.status_code == 200, reply.text


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[1, 2]", 400),
        (b"[" * 10_000 + b"]" * 10_000, 400),
        (b'{"prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
        (b'{"prompt": "a", "temperature": NaN}', 400),
        (b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", 400),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413),
    ],
    ids=["empty", "cut", "bytes", "list", "nested", "nested prompt", "nan", "digits", "10 MB"],
)
def test_a_body_that_is_no_request(server, content, status):
    reply = checked(server.client.post("/generate", content=content, headers=JSON))
    assert reply.status_code == status
    assert server.generate("a")


def test_an_endless_body_of_unknown_length_is_refused(server):
    pieces = (b"a" * 100_000 for _ in range(100))
    assert checked(server.client.post("/generate", content=pieces, headers=JSON)).status_code == 413


def fuzzed(draw):
    """A request that was good until some of its fields were replaced."""
    path = draw.choice(list(PATHS))
    body = dict(PATHS[path])
    for _ in range(draw.choice([0, 1, 1, 2])):
        field = draw.choice([draw.choice(FIELDS), draw.choice(list(body))])
        body[field] = draw.choice(VALUES)
    if draw.random() < 0.1:
        body.pop(draw.choice(list(body)))
    content = json.dumps(body).encode()
    if draw.random() < 0.1:
        content = content[: draw.randrange(len(content))]
    return path, content


def test_fuzzed_requests_get_an_answer_and_leave_nothing(server):
    draw = random.Random(1)
    free, statuses = server.metric("cache_free_tokens"), set()
    for place in range(FUZZED):
        path, content = fuzzed(draw)
        reply = checked(server.client.post(path, content=content, headers=JSON, timeout=30))
        assert reply.status_code != 503 or path == "/generate_vllm", (content, reply.text)
        statuses.add(reply.status_code)
        if place % 50 == 0:
            assert server.generate("a")
    assert {200, 400, 404} <= statuses
    assert server.idle() and server.metric("cache_free_tokens") == free
