"""Converts text to tokens and back; a user's text cannot contain special tokens.

Uses `tokenizers` and jinja2's sandbox, because transformers would import torch.
"""

import json
import re
import secrets
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from serving_from_scratch.core.errors import InvalidRequest, ServingError

HALF = "\ufffd"  # half a character decodes to this


class Text:
    """The tokenizer and the chat template of a checkpoint.

    Args:
        folder: the checkpoint.
        length: texts that surely have more tokens are refused before they are encoded.
    """

    def __init__(self, folder: Path, length: int) -> None:
        self.tokenizer = read_tokenizer(folder)
        # "<|im_end|>" in a text becomes ordinary tokens; `chat` encodes the template's separately.
        self.tokenizer.encode_special_tokens = True
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = {t.content: id for id, t in added.items() if t.special and t.content[1:]}
        longest_first = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._longest = length * max(map(len, self.tokenizer.get_vocab()))
        self._template, self._variables = read_template(folder)

    def check_same(self, folder: Path) -> None:
        """Checks that the tokens of a draft model are this model's; raises ServingError."""
        if read_tokenizer(folder).get_vocab() != self.tokenizer.get_vocab():
            problem = f"The draft model {folder} has other tokens than the model."
            raise ServingError(problem, "Choose a draft model of the same family.")

    def encode(self, text: str, field: str = "prompt", begin: bool = True) -> list[int]:
        """Turns text into token ids; `begin` adds the tokenizer's tokens for the beginning."""
        if len(text) > self._longest:
            problem = f"{field} has {len(text)} characters; the limit is {self._longest}."
            raise InvalidRequest(problem, field)
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise InvalidRequest(f"{field} has a lone surrogate: that is no text.", field)
        return self.tokenizer.encode(text, add_special_tokens=begin).ids

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Renders messages with the model's template, and turns them into token ids.

        Before rendering, a mark splits each special token in the messages. So the special tokens
        that are whole in the result are the template's.
        """
        if self._template is None:
            raise InvalidRequest("This model has no chat template.", "messages")
        mark = secrets.token_hex(8)
        split = [{key: self._split(text, mark) for key, text in m.items()} for m in messages]
        try:
            rendered = self._template.render(messages=split, **self._variables)
        except TemplateError as error:
            problem = f"The chat template refuses these messages: {error}."
            raise InvalidRequest(problem, "messages") from error
        ids: list[int] = []
        for piece in filter(None, self._pattern.split(rendered)):
            text = piece.replace(mark, "")
            special = self._special.get(piece)
            ids += [special] if special is not None else self.encode(text, "messages", False)
        return ids

    def show(self, token: int) -> str:
        """Shows one token as text; half a character becomes a replacement sign."""
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def _split(self, text: str, mark: str) -> str:
        while self._pattern.search(text):
            text = self._pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        return text


class Detokenizer:
    """Turns tokens into text one by one; holds back half characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0  # a token's text may depend on the token before it

    def feed(self, token: int) -> str:
        """Takes the next token and returns the text that is now certain."""
        self._ids.append(token)
        text = self._new()
        if not text or text.endswith(HALF):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def end(self) -> str:
        """Returns the held text."""
        return self._new()

    def _new(self) -> str:
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(known) :]


def read_tokenizer(folder: Path) -> Tokenizer:
    """Reads tokenizer.json; raises ServingError if it cannot be read."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises only Exception
        problem = f"{folder / 'tokenizer.json'} cannot be read: {error}."
        raise ServingError(problem, "Name the folder of a checkpoint.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_template(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Reads the chat template and its variables; None if the model has no template."""
    config_file, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    cast("dict[str, Any]", sandbox.globals)["raise_exception"] = refuse
    try:
        config = json.loads(config_file.read_text()) if config_file.is_file() else {}
        source = file.read_text() if file.is_file() else config.get("chat_template")
        template = sandbox.from_string(source) if isinstance(source, str) else None
    except (ValueError, TemplateError) as error:
        problem = f"The tokenizer's files in {folder} cannot be read: {error}."
        raise ServingError(problem, "Fetch them again.") from error
    names = ("bos_token", "eos_token")
    tokens = {name: config[name] for name in names if isinstance(config.get(name), str)}
    return template, {**tokens, "add_generation_prompt": True}


def refuse(problem: str) -> None:
    """Lets a template refuse a conversation."""
    raise TemplateError(problem)
