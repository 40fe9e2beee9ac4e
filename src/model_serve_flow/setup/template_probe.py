"""Reads a chat template on standard input and prints why it is refused, or nothing.

It runs as its own process because a template is a program: it may never end, or ask for all memory.
"""

from __future__ import annotations

import datetime
import itertools
import json
import resource
import sys
from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
CHARACTERS = 1_000_000  # more than any conversation within a model's context
OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
CONVERSATION = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello, what can I do for you?"},
    {"role": "user", "content": "Count to three."},
]


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox that stops the template at a forbidden attribute.

    Jinja's own sandbox stops only when the template uses the attribute's value.
    """

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        raise SecurityError(f"it asks for the attribute {attribute!r} of {type(obj).__name__!r}")


class Generation(Extension):
    """transformers' tag around the assistant's text; it changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def problem_of(template: str) -> str:
    """Says why a chat template is refused; empty if it is accepted.

    It searches the text and also renders a short conversation, because some problems appear only
    while rendering. A template that rejects this conversation itself is accepted.
    """
    environment = sandbox()
    try:
        tree = environment.parse(template)
        program = environment.from_string(template)
    except (TemplateSyntaxError, SyntaxError) as error:
        return f"is not a Jinja template: {error}"
    if found := next(_forbidden(tree), ""):
        return f"tries to leave its sandbox: {found}"
    try:
        lengths = itertools.accumulate(len(part) for part in program.generate(**_variables()))
        if any(length > CHARACTERS for length in lengths):
            return f"writes more than {CHARACTERS} characters for a conversation of three messages"
    except SecurityError as error:
        return f"tries to leave its sandbox: {error}"
    except (MemoryError, OverflowError, RecursionError) as error:
        return f"asks for too much: {type(error).__name__} {error}".strip()
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return ""
    return ""


def _json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def sandbox() -> ImmutableSandboxedEnvironment:
    """Returns the environment in which transformers renders chat templates."""
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _json
    names: dict[str, Any] = environment.globals
    names["raise_exception"] = _give_up
    names["strftime_now"] = lambda style: datetime.datetime.now().astimezone().strftime(style)
    return environment


def _give_up(message: str) -> None:
    raise TemplateError(message)


def _variables() -> dict[str, object]:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return {
        "messages": CONVERSATION,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        **tokens,
    }


def _forbidden(tree: nodes.Template) -> Iterator[str]:
    """Yields every access to Python's internal attributes and to other files."""
    for node in tree.find_all(OTHER_FILES):
        yield f"line {node.lineno} reads another file"
    for node in tree.find_all(nodes.Getattr):
        if node.attr.startswith("_"):
            yield f"line {node.lineno} asks for the attribute {node.attr!r}"
    for node in tree.find_all((nodes.Getitem, nodes.Filter)):
        for text in (
            (node.arg,)
            if isinstance(node, nodes.Getitem)
            else (*node.args, *(k.value for k in node.kwargs))
        ):
            hidden = (
                isinstance(text, nodes.Const) and isinstance(text.value, str) and "__" in text.value
            )
            if hidden and (
                isinstance(node, nodes.Getitem)
                or node.name in ("attr", "map", "selectattr", "rejectattr")
            ):
                yield f"line {node.lineno} asks for the attribute {text.value!r}"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(problem_of(sys.stdin.buffer.read().decode("utf-8")))
