"""Function calls and JSON answers, with OpenAI's own client."""

import json
import re

import jsonschema
import openai
import pytest

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
SUM = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}


def tool(name, parameters, description="Does it."):
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [tool("weather", CITY), tool("add", SUM), tool("now", {})]
PARAMETERS = {"weather": CITY, "add": SUM, "now": {"type": "object", "maxProperties": 0}}
TURN = {"role": "user", "content": "What is 1 + 2?"}


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client, **other):
    body = {"model": "tiny", "messages": [TURN], "max_tokens": 300, **other}
    return client.chat.completions.create(**body)


def check_call(call):
    arguments = json.loads(call.function.arguments)
    jsonschema.validate(arguments, PARAMETERS[call.function.name])
    assert call.type == "function" and re.fullmatch(r"call_\w+", call.id)
    return arguments


@pytest.mark.parametrize("choice", ["required", "weather", "now"])
def test_every_constrained_call_is_valid(client, choice):
    named = {"type": "function", "function": {"name": choice}}
    wanted = choice if choice == "required" else named
    seen = set()
    for seed in range(12):
        reply = ask(client, tools=TOOLS, tool_choice=wanted, seed=seed).choices[0]
        if reply.finish_reason == "length":
            assert reply.message.tool_calls is None
            continue
        assert reply.finish_reason == "tool_calls" and reply.message.content is None
        [call] = reply.message.tool_calls
        check_call(call)
        seen.add(call.function.name)
    assert seen and (choice == "required" or seen == {choice})


def test_a_call_that_meets_the_token_limit_is_no_call(client):
    whole = ask(client, tools=TOOLS, tool_choice="required", seed=3, max_tokens=40).choices[0]
    assert whole.finish_reason == "length" and whole.message.tool_calls is None
    assert whole.message.content.startswith('<tool_call>\n{"name"')
    stream = ask(client, tools=TOOLS, tool_choice="required", seed=3, max_tokens=40, stream=True)
    pieces = [chunk.choices[0] for chunk in stream]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert not any(piece.delta.tool_calls for piece in pieces)


def test_a_streamed_call_is_the_whole_call(client):
    options = {"tools": TOOLS, "tool_choice": "required", "seed": 5}
    [call] = ask(client, **options).choices[0].message.tool_calls
    pieces = [chunk.choices[0] for chunk in ask(client, **options, stream=True)]
    calls = [entry for piece in pieces for entry in piece.delta.tool_calls or ()]
    assert len(calls) == 1 and calls[0].function.arguments == call.function.arguments
    assert calls[0].index == 0 and pieces[-1].finish_reason == "tool_calls"
    assert not any(piece.delta.content for piece in pieces)


def test_a_model_that_need_not_call_may_answer(client):
    for options in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        reply = ask(client, tools=TOOLS, max_tokens=8, temperature=0, **options).choices[0]
        assert reply.message.content and reply.message.tool_calls is None
    free = ask(client, max_tokens=8, temperature=0).choices[0].message.content
    assert (
        free
        == ask(client, tools=TOOLS, tool_choice="none", max_tokens=8, temperature=0)
        .choices[0]
        .message.content
    )


def test_a_call_is_run_and_its_result_answered(client):
    asked = {"type": "function", "function": {"name": "add"}}
    reply = next(
        reply
        for seed in range(20)
        if (reply := ask(client, tools=TOOLS, tool_choice=asked, seed=seed).choices[0])
        and reply.finish_reason == "tool_calls"
    )
    [call] = reply.message.tool_calls
    result = sum(check_call(call).values())
    turns = [
        TURN,
        reply.message,
        {"role": "tool", "tool_call_id": call.id, "content": str(result)},
    ]
    answer = ask(client, messages=turns, tools=TOOLS, tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.content
    unsent = ask(client, messages=turns[:1], tools=TOOLS, tool_choice="none", max_tokens=8)
    assert answer.usage.prompt_tokens > unsent.usage.prompt_tokens + 20


def test_an_answer_follows_a_schema(client):
    named = {"name": "city", "schema": CITY, "strict": True}
    answers = [
        ask(client, seed=seed, response_format={"type": "json_schema", "json_schema": named})
        for seed in range(8)
    ]
    whole = [a.choices[0] for a in answers if a.choices[0].finish_reason == "stop"]
    assert whole
    for choice in whole:
        jsonschema.validate(json.loads(choice.message.content), CITY)


RECURSIVE = {"type": "object", "properties": {"a": {"$ref": "#"}}}
HUGE = {"type": "object", "properties": {str(n): {"type": "string"} for n in range(2_000)}}
LONE = {"type": "object", "properties": {"a": {"const": "\ud800"}}}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tools": [tool("f", RECURSIVE)]}, "recursive"),
        ({"tools": [tool("f", HUGE)]}, "too large"),
        ({"tools": [tool("f", {"type": "string"})]}, "no object"),
        ({"tools": [tool("f", {"type": "object", "not": {}})]}, "'not'"),
        ({"tools": [tool("f", SUM), tool("f", SUM)]}, "same name"),
        ({"tools": [tool("f g", SUM)]}, "name"),
        ({"tools": [tool("f", SUM)] * 40}, "tools"),
        ({"tools": [tool("f", SUM, "\ud800")]}, "surrogate"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "'g'"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": RECURSIVE},
                }
            },
            "recursive",
        ),
        (
            {
                "tools": TOOLS,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": SUM},
                },
            },
            "together",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "a", "content": "3"}]}, "no call"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "a",
                        "schema": {"type": "integer", "minimum": 3, "maximum": 1},
                    },
                }
            },
            "grammar cannot be used",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(server, wrong, told):
    content = json.dumps({"messages": [TURN], "max_tokens": 4, **wrong})
    headers = {"Content-Type": "application/json"}
    reply = server.client.post("/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == 400, reply.text
    assert told in reply.json()["error"]["message"]
    assert server.generate("a")


def test_a_surrogate_in_a_schema_ends_nothing_but_its_request(server):
    body = {
        "messages": [TURN],
        "max_tokens": 60,
        "tools": [tool("f", LONE)],
        "tool_choice": "required",
    }
    reply = server.client.post(
        "/v1/chat/completions",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert reply.status_code in (200, 400)
    assert server.healthy() and server.generate("a")
