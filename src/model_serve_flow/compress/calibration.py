"""Tokenises the calibration texts, packaged or from the hub, for llm-compressor."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from model_serve_flow.compress.contamination import evaluation_texts, find_overlap
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Calibration, HubDataset
from model_serve_flow.flow.results.measured import CalibrationFacts, Overlap
from model_serve_flow.setup.hub import hub_rows
from model_serve_flow.system.files import read_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 10_000


def calibration_dataset(
    flow: Flow, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, CalibrationFacts]:
    """Tokenises the calibration texts.

    Texts go through the tokenizer's chat template if it has one. They are truncated to
    `max_sequence_length` tokens and never padded, because padding would count as activations of
    real text.

    The whole messages are searched for evaluation items. An item that is found is recorded but is
    no error, because a single common phrase may be chance.

    Returns:
        The dataset with `input_ids` and `attention_mask`, one row per text, and its facts.

    Raises:
        FlowError: fewer texts than `calibration.samples`, a row without text, padding, or the hub
            cannot be reached.
    """
    from datasets import Dataset

    calibration = flow.config.calibration
    templated = tokenizer.chat_template is not None
    conversations = [_messages(row) for row in _rows(flow)]
    texts = [_text(messages, tokenizer) for messages in conversations]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=calibration.max_sequence_length,
        padding=False,
        add_special_tokens=not templated,  # the template has written them already
    )
    dataset = Dataset.from_dict(
        {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    )
    items = evaluation_texts(flow)
    spoken = ("\n".join(message["content"] for message in messages) for messages in conversations)
    overlap = None if items is None else find_overlap(spoken, items)
    return dataset, calibration_facts(dataset, calibration, templated, overlap)


def calibration_facts(
    dataset: Dataset, calibration: Calibration, templated: bool, overlap: Overlap | None
) -> CalibrationFacts:
    """Describes what the compressor will see.

    Raises:
        FlowError: a token is padding, or a text has no token.
    """
    if empty := sum(not row for row in dataset["input_ids"]):
        raise FlowError(
            f"{empty} of {len(dataset['input_ids'])} calibration texts have no token.",
            "The tokenizer knows none of their words: is it the model's own?",
        )
    tokens = sum(len(row) for row in dataset["input_ids"])
    padding = tokens - sum(sum(mask) for mask in dataset["attention_mask"])
    if padding:
        raise FlowError(
            f"{padding} of {tokens} calibration tokens are padding.",
            "Padding counts as activations that no user causes: tokenise each text to its own "
            "length.",
        )
    return CalibrationFacts(
        source=_source_text(calibration),
        samples=len(dataset),
        tokens=tokens,
        chat_template=templated,
        max_sequence_length=calibration.max_sequence_length,
        sha256=hashlib.sha256(
            json.dumps([list(row) for row in dataset["input_ids"]]).encode()
        ).hexdigest(),
        overlap=overlap,
    )


def _source_text(calibration: Calibration) -> str:
    if (packaged := calibration.packaged) is not None:
        return f"{packaged.package}=={packaged.version}: {packaged.path}"
    dataset = calibration.dataset
    assert dataset is not None
    return ":".join(part for part in (dataset.path, dataset.name, dataset.split) if part)


def _messages(row: dict[str, Any]) -> list[dict[str, str]]:
    """Returns a row as a conversation; plain text becomes one turn of the user."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("text")}]
    spoken = [
        _turn(message) for message in messages if isinstance(message, dict) and message.get("role")
    ]
    if len(spoken) != len(messages) or not any(turn["content"] for turn in spoken):
        raise FlowError(
            f"A calibration row has neither messages nor text: {str(row)[:120]}",
            "Rows are {'messages': [{'role': ..., 'content': ...}]} or {'text': ...}.",
        )
    return [
        turn for turn in spoken if turn["content"] or turn["role"] not in ("system", "developer")
    ]


def _turn(message: dict[str, Any]) -> dict[str, str]:
    """Returns a message with its content as one text.

    Parts are joined. A tool call without content becomes an empty text.
    """
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content
        )
    return {**message, "content": content or ""}


def _text(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a conversation as the model will read it.

    Raises:
        FlowError: the chat template refuses the conversation; the message shows it.
    """
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is not None:
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            raise FlowError(
                f"The model's chat template refuses a calibration row: {error}. The row: "
                f"{str(messages)[:200]}",
                "Use rows that the template accepts, or a dataset with a column of plain text.",
            ) from error
    return "\n\n".join(message["content"] for message in messages)


def _rows(flow: Flow) -> list[dict[str, Any]]:
    """Returns the first `samples` rows, in an order that depends on the seed only."""
    calibration = flow.config.calibration
    rows = (
        _packaged_rows(flow)
        if calibration.dataset is None
        else _hub_rows(calibration.dataset, calibration.samples, flow.config.seed)
    )
    if len(rows) < calibration.samples:
        raise FlowError(
            f"calibration.samples is {calibration.samples}, but {_source_text(calibration)} gave "
            f"{len(rows)} texts.",
            f"Lower calibration.samples. If it was raised since the texts were written: {RERUN}",
        )
    return rows


def _packaged_rows(flow: Flow) -> list[dict[str, Any]]:
    """Reads the rows that 00_Setup wrote; it has already shuffled them with the seed."""
    path = flow.workspace.data / "calibration.jsonl"
    if not path.is_file():
        raise FlowError(f"{path} is missing.", f"00_Setup writes the calibration texts. {RERUN}")
    return read_rows(path)[: flow.config.calibration.samples]


def _hub_rows(source: HubDataset, samples: int, seed: int) -> list[dict[str, Any]]:
    """Streams only the part of the dataset that the shuffle needs."""
    return hub_rows(
        source,
        "calibration.dataset",
        lambda stream: stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(samples),
    )
