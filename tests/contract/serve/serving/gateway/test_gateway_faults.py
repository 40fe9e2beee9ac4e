"""Rows 0.1 and 0.7 to 0.10, and faults of predictors: named at once, never half an answer."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from support.serving_server import gone, wait_until

ASK = {"model": "m", "prompt": "hello"}


def message(reply):
    return reply.json()["error"]["message"]


def timed(ask):
    started = time.monotonic()
    return ask(), time.monotonic() - started


def test_without_any_predictor_the_gateway_answers(lonely):
    door, url = lonely
    assert door.client.get("/").json()["models"] == {"m": "/llm"}
    assert door.client.get("/health").json()["status"] == "ok"
    assert [model.id for model in door.openai.models.list()] == ["m"]
    for path in ("/v1/completions", "/llm/v1/completions", "/predict?model=m"):
        reply, seconds = timed(lambda path=path: door.post(path, **ASK))
        assert reply.status_code == 502 and f"m at {url}" in message(reply)
        assert seconds < 1
    with pytest.raises(openai.InternalServerError):
        door.openai.completions.create(**ASK)


def test_a_dead_replica_s_requests_go_to_the_other(door, stand_in):
    (first, one), (second, two) = stand_in("one"), stand_in("two")
    with door.models({"name": "m", "urls": [one, two]}):
        first.kill()
        replies = [door.post("/v1/completions", **ASK) for _ in range(6)]
        assert {reply.json()["model"] for reply in replies} == {"two"}
        second.kill()
        reply, seconds = timed(lambda: door.post("/v1/completions", **ASK))
        assert reply.status_code == 502 and one in message(reply) and seconds < 1
        stand_in("back", port=int(one.rpartition(":")[2]))
        wait_until(lambda: door.post("/v1/completions", **ASK).status_code == 200, 5)


def test_a_stopped_predictor_gets_no_more_requests(door, stand_in):
    (first, one), (_, two) = stand_in("one"), stand_in("two")
    with door.models({"name": "m", "urls": [one, two]}):
        wait_until(lambda: door.healthy()[f"m at {one}"])
        first.send_signal(signal.SIGSTOP)
        wait_until(lambda: door.healthy()[f"m at {one}"] is False, 10)
        replies = [timed(lambda: door.post("/v1/completions", **ASK)) for _ in range(4)]
        assert all(r.json()["model"] == "two" and seconds < 1 for r, seconds in replies)
        first.send_signal(signal.SIGCONT)
        wait_until(lambda: door.healthy()[f"m at {one}"], 5)


@pytest.mark.parametrize("prompt", ["nonsense", "nothing", "error", "empty", "slow 3"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_predictor_that_fails_is_named(door, stand_in, prompt, stream):
    _, url = stand_in()
    with door.models({"name": "m", "urls": [url], "seconds": 1}):
        reply = door.post("/v1/completions", model="m", prompt=prompt, stream=stream)
        assert reply.status_code == 502 and f"m at {url}" in message(reply)
        assert door.post("/v1/completions", **ASK).status_code == 200


def test_a_refusal_is_passed_on_and_not_tried_elsewhere(door, stand_in):
    urls = [stand_in(name)[1] for name in ("one", "two")]
    with door.models({"name": "m", "urls": urls}):
        reply = door.post("/v1/completions", model="m", prompt="refuse")
        assert reply.status_code == 400 and message(reply) in ("one", "two")


def test_the_least_busy_replica_is_asked(door, stand_in):
    urls = [stand_in(name)[1] for name in ("one", "two")]
    spec = {"name": "m", "urls": urls, "balance": "least-busy"}
    with door.models(spec), ThreadPoolExecutor() as pool:
        slow = pool.submit(door.post, "/v1/completions", model="m", prompt="slow 2")
        wait_until(lambda: door.admin("GET").json()[0]["in_flight"] == 1)
        quick = {door.post("/v1/completions", **ASK).json()["model"] for _ in range(4)}
        assert not slow.done() and quick == {"one", "two"} - {slow.result().json()["model"]}


def test_half_an_answer_never_looks_whole(door, stand_in):
    process, url = stand_in()
    with door.models({"name": "m", "urls": [url]}):
        ends = [door.post("/v1/completions", model="m", prompt="close", stream=True).text]
        body = {"model": "m", "prompt": "hold", "stream": True}
        with door.client.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            first = next(lines)
            process.kill()
            ends.append("\n".join([first, *lines]))
        for end in ends:
            events = [line for line in end.splitlines() if line]
            assert "[DONE]" not in end and len(events) == 2
            last = json.loads(events[1].removeprefix("data: "))
            assert f"m at {url}" in last["error"]["message"]


def test_a_client_who_leaves_frees_the_predictor(door, stand_in):
    _, url = stand_in()
    with door.models({"name": "m", "urls": [url]}):
        body = {"model": "m", "prompt": "hold", "stream": True}
        with door.client.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()  # kept, because httpx closes the stream without it
            next(lines)
            assert door.admin("GET").json()[0]["in_flight"] == 1
        wait_until(lambda: door.admin("GET").json()[0]["in_flight"] == 0, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"[" * 100_000, b'"\xff"', b"null"])
def test_what_is_no_json_object_is_400(door, content):
    assert door.client.post("/v1/completions", content=content).status_code == 400


def test_limit_two_the_least_recently_used_leaves(door):
    models = [{"name": name, "launcher": "stand-in", "source": "x"} for name in "abc"]
    with door.models(*models):

        def ask(name, prompt="hello"):
            reply = door.post("/v1/completions", model=name, prompt=prompt)
            assert reply.status_code == 200, reply.text
            return reply.json()["choices"][0]["text"]

        def loaded():
            return {m["name"]: m["process"] for m in door.admin("GET").json() if m["loaded"]}

        with ThreadPoolExecutor(8) as pool:  # two first requests load once
            assert len(set(pool.map(ask, "aaaaaaaa"))) == 1
        ask("b")
        ask("a")
        processes = {name: psutil.Process(pid) for name, pid in loaded().items()}
        ask("c")
        assert set(loaded()) == {"a", "c"} and gone(processes["b"])
        # a is the least recently used now, but answers a request
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(ask, "a", "slow 2")
            wait_until(lambda: door.admin("GET").json()[0]["in_flight"] == 1)
            ask("c")
            ask("b")
            assert set(loaded()) == {"a", "b"} and not slow.done()
            assert slow.result() == f"a {processes['a'].pid}"
        # a killed one is loaded again
        processes["a"].kill()
        wait_until(lambda: gone(processes["a"]))
        wait_until(lambda: door.post("/v1/completions", model="a", prompt="x").is_success, 5)
        remaining = [psutil.Process(pid) for pid in loaded().values()]
    assert remaining and all(map(gone, remaining))


def test_all_in_use_a_third_model_waits_for_room(door):
    models = [{"name": name, "launcher": "stand-in", "source": "x"} for name in "abc"]
    with door.models(*models), ThreadPoolExecutor() as pool:
        ask = {"prompt": "slow 1"}
        slow = [pool.submit(door.post, "/v1/completions", model=name, **ask) for name in "ab"]
        wait_until(lambda: sum(model["in_flight"] for model in door.admin("GET").json()) == 2)
        reply = door.post("/v1/completions", model="c", prompt="hello")
        assert reply.status_code == 200 and any(one.done() for one in slow)
        assert all(one.result().status_code == 200 for one in slow)


def test_a_model_that_does_not_start_says_why(door):
    broken = {"name": "broken", "launcher": "own", "source": "/no/such/folder"}
    with door.models(broken):
        reply = door.post("/v1/completions", model="broken", prompt="x")
        assert reply.status_code == 502 and "/no/such/folder" in message(reply)


def test_a_model_is_added_and_removed(door, tiny_model):
    spec = {"name": "new", "launcher": "own", "source": str(tiny_model), "path": "/new"}
    for wrong in ({"launcher": "shell"}, {"kind": "x"}, {"source": "--host"}, {"launcher": ""}):
        assert door.admin("POST", **{**spec, **wrong}).status_code == 400
    assert door.admin("POST", **spec).status_code == 201
    assert door.admin("POST", **spec).status_code == 400
    reply = door.post("/new/v1/completions", prompt="a", max_tokens=2, temperature=0)
    assert reply.status_code == 200, reply.text
    [listed] = door.admin("GET").json()
    process = psutil.Process(listed["process"])
    everyone = [process, *process.children(recursive=True)]
    assert len(everyone) == 2 and "key" in listed
    assert door.admin("DELETE", "/new").json() == {"removed": "new"}
    assert all(map(gone, everyone))
    reply = door.post("/v1/completions", model="new", prompt="a")
    assert reply.status_code == 404
    assert door.admin("DELETE", "/new").status_code == 404
