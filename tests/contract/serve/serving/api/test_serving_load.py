"""Many clients, leaving clients, slow clients, a full queue, deadlines, a small cache."""

import asyncio
import json
import os
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx

LEAVERS = int(os.environ.get("SERVING_LEAVERS", "100"))
PROMPTS = ["def", "import", "the end of the process", "A long one. " * 20]


async def stream_text(client, **question):
    """Reads a stream of /generate_stream, and checks that it holds one sequence only."""
    ids, text, names = [], "", set()
    async with client.stream("POST", "/generate_stream", json=question) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line[6:])
                names.add(piece["id"])
                text, ids = text + piece["text"], ids + piece["token_ids"]
    assert (len(names) == 1 and line == "") or line == "data: [DONE]"
    return text, ids


def client_of(server):
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, trust_env=False)


def test_two_hundred_streams_without_cross_talk(server):
    draw = random.Random(0)
    questions = [
        {
            "prompt": "".join(draw.choices("abc de", k=draw.randint(1, 60))),
            "max_tokens": draw.randint(1, 40),
            "temperature": draw.choice([0, 1.0]),
            "seed": place,
        }
        for place in range(200)
    ]

    async def all_at_once():
        async with client_of(server) as client:
            return await asyncio.gather(*(stream_text(client, **q) for q in questions))

    together = asyncio.run(all_at_once())
    for question, (text, ids) in zip(questions, together, strict=True):
        alone = server.post("/basic_generate", **question).json()
        assert (text, ids) == (alone["text"], alone["token_ids"])


async def leave(server, seed):
    """Asks for something long, and leaves at any moment."""
    draw = random.Random(seed)
    question = {"prompt": draw.choice(PROMPTS) * 3, "max_tokens": 600, "ignore_eos": True}
    path = draw.choice(["/generate_stream", "/generate"])
    async with client_of(server) as client:
        try:
            async with asyncio.timeout(draw.choice([0.002, 0.02, 0.2, 0.5])):
                async with client.stream("POST", path, json=question) as reply:
                    async for _ in reply.aiter_lines():
                        pass
        except TimeoutError:
            return


def test_leavers_leave_nothing_behind(server):
    free, files = server.metric("cache_free_tokens"), server.process.num_fds()
    steps = server.metric("generated_tokens_total")

    async def all_leave():
        for start in range(0, LEAVERS, 20):
            await asyncio.gather(*(leave(server, seed) for seed in range(start, start + 20)))

    asyncio.run(all_leave())
    server.wait_until(server.idle, 5)
    assert server.metric("generated_tokens_total") > steps  # some had begun
    assert server.metric("cache_free_tokens") == free
    server.wait_until(lambda: server.process.num_fds() <= files, 10)
    assert server.healthy()


def test_a_client_that_reads_nothing_is_ended_and_delays_nobody(start):
    question = {"prompt": "a", "max_tokens": 1000, "n": 4, "stream": True, "logprobs": 20}
    body = json.dumps({**question, "ignore_eos": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with start("--write-seconds", "1") as server, socket.socket() as client:
        server.generate("def", 100)
        files, before = server.process.num_fds(), server.process.memory_info().rss
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", httpx.URL(server.url).port))
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_until(lambda: server.metric("requests_running") == 4)
        assert len(server.generate("def", 100)[0]["token_ids"]) == 100
        server.wait_until(server.idle, 30)
        server.wait_until(lambda: server.process.num_fds() <= files, 20)
        assert server.process.memory_info().rss - before < 64e6


def test_a_full_queue_refuses_at_once_and_touches_nothing(start):
    long = {"prompt": "a", "max_tokens": 900, "ignore_eos": True}
    with start("--places", "2", "--max-waiting", "3") as server, ThreadPoolExecutor() as pool:
        taken = [pool.submit(server.post, "/generate", **long) for _ in range(5)]
        server.wait_until(lambda: server.metric("requests_running") == 2)
        server.wait_until(lambda: server.metric("requests_waiting") == 3)
        refused = server.post("/generate", prompt="a")
        assert server.metric("requests_waiting") == 3  # it was not kept until a place was free
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert "limit is 3" in refused.json()["error"]["message"]
        assert [future.result().status_code for future in taken] == [200] * 5


def test_a_passed_deadline_ends_a_request_and_one_in_the_queue_never_starts(start):
    long = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}
    with start("--strategy", "one-by-one") as server, ThreadPoolExecutor() as pool:
        running = pool.submit(server.post, "/generate", **long)
        server.wait_until(lambda: server.metric("requests_running") == 1)
        late = server.post("/generate", prompt="b" * 500, timeout=0.1)
        assert late.status_code == 408 and "0.1 seconds" in late.json()["error"]["message"]
        assert running.result().status_code == 200
        assert server.post("/generate", **long, timeout=0.2).status_code == 408
        assert server.idle() and server.metric("step_tokens_total") < 1000 + 500


def test_a_cache_too_small_for_all_preempts_and_for_one_refuses(start, server):
    prompts = [prompt * 2 for prompt in PROMPTS] * 3
    expected = [answer["token_ids"] for answer in server.generate(prompts, 100)]
    with start("--cache", "paged", "--blocks", "40") as small:
        refused = small.post("/generate", prompt="a", max_tokens=800)
        assert refused.status_code == 400
        assert "801" in refused.text and "640" in refused.text
        assert [a["token_ids"] for a in small.generate(prompts, 100)] == expected
        assert small.metric("cache_free_tokens") == 640
