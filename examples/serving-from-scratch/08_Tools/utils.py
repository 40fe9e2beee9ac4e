"""Provides what the notebook of 08_Tools uses: a server, tools, questions, tables and charts."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import matplotlib.pyplot as plt
import pandas as pd
import torch

from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.serve.local_server import LocalServer
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.system.files import write_json
from serving_from_scratch.api.tools import as_json, as_text
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.request import SamplingParameters
from serving_from_scratch.core.step import Chunk, Step
from serving_from_scratch.engine.text import Text
from serving_from_scratch.model.loading import ModelManager
from serving_from_scratch.model.row import Row

__all__ = [
    "FUNCTIONS",
    "QUESTIONS",
    "TOOLS",
    "Flow",
    "Server",
    "ask_all",
    "call_chart",
    "call_table",
    "mask_chart",
    "mask_walk",
    "prepare_base",
    "run_call",
    "write_json",
]

pd.set_option("display.max_colwidth", 90)  # a call is longer than pandas shows

COMMAND = (sys.executable, "-m", "serving_from_scratch.cli", "serve")
NUMBER, CITY = {"type": "number"}, {"type": "string", "maxLength": 20}
WEATHER = {"Oslo": "snow, -3 °C", "Cairo": "sun, 31 °C", "London": "rain, 11 °C"}


def parameters(**properties: Any) -> dict[str, Any]:
    """Makes the schema of a function whose arguments are all required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Describes a function as OpenAI's API does."""
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool("weather", "Says how the weather is in a city.", parameters(city=CITY)),
    tool("multiply", "Multiplies two numbers.", parameters(a=NUMBER, b=NUMBER)),
    tool(
        "convert",
        "Converts a temperature to another unit.",
        parameters(value=NUMBER, unit={"enum": ["celsius", "fahrenheit"]}),
    ),
]
FUNCTIONS = {
    "weather": lambda city: WEATHER.get(city, "no report"),
    "multiply": lambda a, b: a * b,
    "convert": lambda value, unit: (
        round((value - 32) / 1.8, 1) if unit == "celsius" else round(value * 1.8 + 32, 1)
    ),
}
PLACES = 4  # questions that the server answers at once
QUESTIONS = [
    ("How is the weather in Oslo?", "weather", {"city": "Oslo"}),
    ("Is it raining in London?", "weather", {"city": "London"}),
    ("What is 12 times 7?", "multiply", {"a": 12, "b": 7}),
    ("Multiply 3 by 40.", "multiply", {"a": 3, "b": 40}),
    ("What is 20 degrees celsius in fahrenheit?", "convert", {"value": 20, "unit": "fahrenheit"}),
    ("Convert 50 fahrenheit to celsius.", "convert", {"value": 50, "unit": "celsius"}),
]


class Server(LocalServer):
    """Runs our server in its own processes, on a free port.

    Args:
        base: the checkpoint.
    """

    def __init__(self, base: Path) -> None:
        super().__init__([*COMMAND, str(base), "--port=0", "--name=base", f"--places={PLACES}"])


def mask_walk(base: Path, schema: dict[str, Any], question: str, tokens: int) -> pd.DataFrame:
    """Answers a question under a schema; shows what the grammar does at each token.

    Returns:
        For each token: the model's favourite, the favourite's probability, how many tokens the
        grammar allows, and the chosen token.
    """
    options = ModelOptions(str(base), "float32", places=1, length=512)
    text, runner = Text(base, options.length), ModelManager().runner(options)
    prompt = tuple(text.chat([{"role": "user", "content": question}]))
    sampling = SamplingParameters(tokens, grammar=as_text(as_json(schema)))
    answer: tuple[int, ...] = ()
    new, rows = prompt, []
    while len(answer) < tokens and answer[-1:] != runner.facts.eos[:1]:
        start = len(prompt) + len(answer) - len(new)
        chunk = Chunk("walk", 0, start, new, True, sampling, answer=answer)
        hidden = runner.model.forward(Row(Step((chunk,))), runner.cache, runner.backend)
        scores = runner.model.logits(hidden[-1])
        matcher = runner.grammars.matcher(chunk)
        allowed = matcher.allowed(scores)
        token, favourite = int(allowed.argmax()), int(scores.argmax())
        matcher.accept(token)
        rows.append(
            {
                "the model's favourite": repr(text.show(favourite)),
                "its probability": round(float(torch.softmax(scores, -1)[favourite]), 2),
                "tokens allowed": int(torch.isfinite(allowed).sum()),
                "chosen": repr(text.show(token)),
            }
        )
        new, answer = (token,), (*answer, token)
    return pd.DataFrame(rows)


def mask_chart(walk: pd.DataFrame) -> None:
    """Draws how many tokens the grammar allows, by position in the answer."""
    changed = walk["chosen"] != walk["the model's favourite"]
    colours = [PALETTE[1] if change else PALETTE[0] for change in changed]
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.8))
        axis.bar(range(len(walk)), walk["tokens allowed"], color=colours)
        axis.set_xticks(range(len(walk)), walk["chosen"], rotation=75, fontsize=8)
        axis.set(ylabel="Tokens allowed", yscale="log", ylim=(0.8, 1e5))
        powers = [10**power for power in range(5)]
        axis.set_yticks(powers, [f"{power:,}" for power in powers])
        axis.grid(False, axis="x")
        figure.tight_layout()
        plt.show()


def ask_all(server: Server, how: str) -> pd.DataFrame:
    """Asks all questions, four at a time.

    Args:
        how: "told" describes the functions in the question and hopes; "auto" and "required" are
            values of tool_choice.

    Returns:
        One row per question: whether a call is valid, and whether name and arguments are right.
    """
    with ThreadPoolExecutor(PLACES) as pool:
        return pd.DataFrame(pool.map(lambda question: judge(server, how, *question), QUESTIONS))


def judge(
    server: Server,
    how: str,
    question: str,
    name: str,
    arguments: dict[str, Any],
) -> dict[str, Any]:
    """Asks one question, and compares the call with the expected one."""
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": how}
    if how == "told":
        names = "\n".join(json.dumps(entry["function"]) for entry in TOOLS)
        question = f'{names}\nAnswer only with {{"name": ..., "arguments": ...}}.\n{question}'
        options = {}
    reply = server.openai.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": question}],
        max_tokens=64,
        temperature=0,
        **options,
    ).choices[0]
    if reply.message.tool_calls:
        function = reply.message.tool_calls[0].function
        said = json.dumps({"name": function.name, "arguments": json.loads(function.arguments)})
    else:
        said = reply.message.content or ""
    call = valid_call(said)
    return {
        "said": said,
        "valid": call is not None,
        "right function": call is not None and call["name"] == name,
        "right call": call == {"name": name, "arguments": arguments},
        "finish": reply.finish_reason,
    }


def valid_call(said: str) -> dict[str, Any] | None:
    """Reads a call and validates its arguments; None if it is no call of a known function."""
    schemas = {entry["function"]["name"]: entry["function"]["parameters"] for entry in TOOLS}
    try:
        call = json.loads(said)
        jsonschema.validate(call["arguments"], schemas[call["name"]])
    except (ValueError, LookupError, TypeError, jsonschema.ValidationError):
        return None
    return {"name": call["name"], "arguments": call["arguments"]}


def call_table(asked: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Counts valid and right calls by way of asking."""
    columns = ["valid", "right function", "right call"]
    rows = {
        how: {**answers[columns].sum().to_dict(), "cut off": (answers["finish"] == "length").sum()}
        for how, answers in asked.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").astype(int)


def call_chart(table: pd.DataFrame, questions: int) -> None:
    """Draws how many calls were valid, named the right function, and were right."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.6))
        columns = ["valid", "right function", "right call"]
        for place, (column, colour) in enumerate(zip(columns, PALETTE, strict=False)):
            left = [line + 0.27 * (place - 1) for line in range(len(table))]
            axis.bar(left, table[column], width=0.25, color=colour, label=column)
        axis.axhline(questions, color="black", linewidth=1)
        axis.set_xticks(range(len(table)), table.index)
        axis.set(ylabel=f"Of {questions} questions", ylim=(0, questions * 1.4))
        axis.grid(False, axis="x")
        axis.legend(ncols=3)
        figure.tight_layout()
        plt.show()


def run_call(call: Any) -> str:
    """Runs the called function; returns its result as a text."""
    arguments = json.loads(call.function.arguments)
    return str(FUNCTIONS[call.function.name](**arguments))
