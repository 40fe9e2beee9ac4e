"""The calibration texts of a flow, packaged or from the hub, tokenised for llm-compressor."""

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
    """The tokenised calibration texts: `input_ids` and `attention_mask`, one row per text,
    each of its own length.

    Texts go through the tokenizer's chat template where it has one, are truncated to
    `max_sequence_length` tokens and never padded: padding would count as activations of real text.
    Their messages, whole, are searched for the evaluation items; an item found is recorded and no
    error, because one phrase in common may be chance.

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
    """What the compressor will see; FlowError if any of it is padding."""
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
    """A row as a conversation; plain text is the user's turn."""
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
    """A message with its content as text: parts are joined,
    and a tool call without content is empty.
    """
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content
        )
    return {**message, "content": content or ""}


def _text(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """A conversation as the model will read it; FlowError, which shows it,
    where the chat template refuses it.
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
    """The first `samples` rows in an order that the seed decides."""
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
    """The rows that 00_Setup wrote, already in an order decided by the seed."""
    path = flow.workspace.data / "calibration.jsonl"
    if not path.is_file():
        raise FlowError(f"{path} is missing.", f"00_Setup writes the calibration texts. {RERUN}")
    return read_rows(path)[: flow.config.calibration.samples]


def _hub_rows(source: HubDataset, samples: int, seed: int) -> list[dict[str, Any]]:
    """Streams only as much of the dataset as the shuffle needs,
    instead of downloading all of it.
    """
    return hub_rows(
        source,
        "calibration.dataset",
        lambda stream: stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(samples),
    )
