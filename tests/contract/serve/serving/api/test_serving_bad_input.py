"""Whatever a client sends: an answer in OpenAI's form, never a 500, never silence."""

import json
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


BAD = [
    ("/generate", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
    ("/generate", {"prompt": "a", "max_tokens": -3}, 400, "max_tokens is -3"),
    ("/generate", {"prompt": ""}, 400, "no tokens"),
    ("/generate", {"prompt": []}, 400, "prompt"),
    ("/generate", {"prompt": "a", "max_tokens": 2000}, 400, "2001 tokens; the limit is 1024"),
    ("/generate", {"prompt": "a" * 10**6}, 400, "1000000 characters"),
    ("/generate", {"prompt": [600]}, 400, "token id 600"),
    ("/generate", {"prompt": "a", "temperature": -1}, 400, "temperature is -1"),
    ("/generate", {"prompt": "a", "temperature": "hot"}, 400, "'hot'"),
    ("/generate", {"prompt": "a", "top_p": 0}, 400, "top_p is 0"),
    ("/generate", {"prompt": "a", "top_p": 1.5}, 400, "top_p is 1.5"),
    ("/generate", {"prompt": "a", "stop": ["x"] * 20}, 400, "4 texts"),
    ("/generate", {"prompt": "a", "seed": 2**64}, 400, "seed"),
    ("/generate", {"prompt": "a", "surprise": 1}, 400, "surprise"),
    ("/generate", {"prompt": "a", "model": "other"}, 404, "'tiny'"),
    ("/generate", {"prompt": "\ud800"}, 400, ""),
    ("/v1/completions", {"prompt": "a", "n": 5}, 400, "4"),
    ("/v1/completions", {"prompt": "a", "logprobs": 21}, 400, "0 to 20"),
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
