"""Turns tools and schemas into grammars, and answers into function calls.

A call looks like this, in the model's text: the form of Hermes and Qwen, told to the model in the
system message.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>
"""

import json
import uuid
from typing import Any

from serving_from_scratch.api.schemas import ChatBody, Function, Message
from serving_from_scratch.core.errors import InvalidRequest
from serving_from_scratch.core.json_schema import check_schema
from serving_from_scratch.core.request import FinishReason
from serving_from_scratch.core.stopping import StopTexts
from serving_from_scratch.engine.llm_engine import Delta

OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"
TRIGGER = OPEN.strip()
SPACES = 1  # at most between two JSON tokens; a weak model may go on with spaces for ever
ABOUT_TOOLS = """You can call one of these functions:
{functions}
To call a function, answer with its name and arguments, and nothing else:
<tool_call>
{{"name": "function", "arguments": {{...}}}}
</tool_call>"""


def grammar_of(body: ChatBody) -> str:
    """Makes the grammar of an answer; "" if the answer is free.

    Raises:
        InvalidRequest: a schema, a name or a combination that this server cannot serve.
    """
    schema = body.response_format.schema_of() if body.response_format else None
    functions = offered(body)
    if schema is None and not functions:
        return ""
    if body.ignore_eos:
        raise InvalidRequest("ignore_eos is true; a grammar has an end.", "ignore_eos")
    if schema is None:
        return as_text(calls(functions, forced=body.tool_choice not in (None, "auto")))
    if functions:
        raise InvalidRequest("tools and a schema together are not served.", "response_format")
    check_schema(schema, "response_format")
    return as_text(as_json(schema))


def offered(body: ChatBody) -> list[Function]:
    """Lists the functions that the model may call."""
    functions = {tool.function.name: tool.function for tool in body.tools or ()}
    if len(functions) < len(body.tools or ()):
        raise InvalidRequest("tools has two functions of the same name.", "tools")
    choice = body.tool_choice
    if choice == "none" or (choice is None and not functions):
        return []
    if not functions:
        raise InvalidRequest(f"tool_choice is {choice!r}; there are no tools.", "tool_choice")
    if isinstance(choice, str) or choice is None:
        return list(functions.values())
    name = choice.function.name
    if name not in functions:
        known = ", ".join(functions)
        problem = f"tool_choice names {name!r}; the tools are {known}."
        raise InvalidRequest(problem, "tool_choice")
    return [functions[name]]


def calls(functions: list[Function], forced: bool) -> dict[str, Any]:
    """Makes the grammar of text that ends in at most one call, or of a call alone."""
    tags = []
    for place, function in enumerate(functions):
        parameters = function.parameters or {"type": "object", "properties": {}}
        if parameters.get("type") != "object":
            problem = f"The parameters of {function.name} are no object."
            raise InvalidRequest(problem, f"tools.{place}.function.parameters")
        check_schema(parameters, f"tools.{place}.function.parameters")
        begin = f'{OPEN}{{"name": "{function.name}", "arguments": '
        tags.append(
            {"type": "tag", "begin": begin, "content": as_json(parameters), "end": f"}}{CLOSE}"}
        )
    how = {"at_least_one": forced, "stop_after_first": True}
    return {"type": "triggered_tags", "triggers": [TRIGGER], "tags": tags, **how}


def as_json(schema: dict[str, Any]) -> dict[str, Any]:
    """Makes the grammar of JSON texts of a schema."""
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": SPACES}


def as_text(form: dict[str, Any]) -> str:
    """Writes a grammar as the structural tag that xgrammar reads."""
    return json.dumps({"type": "structural_tag", "format": form})


def conversation(body: ChatBody) -> list[dict[str, str]]:
    """Makes plain turns: calls and their results become text, functions a system message.

    Raises:
        InvalidRequest: a result without a call.
    """
    turns, called = [], set()
    for place, message in enumerate(body.messages):
        if message.role == "tool" and message.tool_call_id not in called:
            raise InvalidRequest(
                f"The message of role 'tool' answers {message.tool_call_id!r}, which is no call.",
                f"messages.{place}.tool_call_id",
            )
        called |= {call.id for call in message.tool_calls or ()}
        turns.append(plain(message))
    if functions := offered(body):
        listed = "\n".join(
            json.dumps(function.model_dump(exclude_none=True), ensure_ascii=False)
            for function in functions
        )
        about = ABOUT_TOOLS.format(functions=listed)
        own = turns.pop(0)["content"] + "\n\n" if turns[0]["role"] == "system" else ""
        turns.insert(0, {"role": "system", "content": own + about})
    return turns


def plain(message: Message) -> dict[str, str]:
    """Makes the turn that a chat template reads; templates know no role for results."""
    text = message.text
    if message.role == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    for call in message.tool_calls or ():
        name = json.dumps(call.function.name)
        told = f'{{"name": {name}, "arguments": {call.function.arguments}}}'
        text += f"{OPEN}{told}{CLOSE}"
    return {"role": message.role, "content": text}


class CallReader:
    """Finds the call in the pieces of one answer.

    Args:
        watches: whether the answer may have a call.
    """

    def __init__(self, watches: bool) -> None:
        self._before = StopTexts((TRIGGER,) if watches else ())
        self._text = ""

    def feed(self, delta: Delta) -> tuple[str, dict[str, Any] | None]:
        """Returns the text to show, and the call once it is complete.

        A call that the answer's end cut off is shown as text.
        """
        self._text += delta.text
        shown = self._before.feed(delta.text)
        if not delta.finish_reason:
            return shown, None
        if self._before.stopped is None:
            return shown + self._before.end(), None
        _, _, call = self._text.partition(TRIGGER)
        if delta.finish_reason is not FinishReason.STOP or CLOSE not in call:
            return shown + TRIGGER + call, None
        return shown, as_call(call.removesuffix(CLOSE))


def as_call(text: str) -> dict[str, Any]:
    """Makes OpenAI's form of a call; its arguments are JSON in a text."""
    call = json.loads(text)
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
