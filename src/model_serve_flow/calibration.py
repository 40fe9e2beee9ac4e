"""The calibration texts of a flow, packaged or from the hub, tokenised for llm-compressor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_serve_flow.config import Calibration, HubDataset
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.results import CalibrationFacts

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

SHUFFLE_BUFFER = 10_000


def calibration_dataset(flow: Flow, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, CalibrationFacts]:
    """The tokenised calibration texts: `input_ids` and `attention_mask`, one row per text, each of its own length.

    Texts go through the tokenizer's chat template where it has one, are truncated to `max_sequence_length` tokens and
    never padded: padding would count as activations of real text.

    Raises:
        FlowError: fewer texts than `calibration.samples`, a row without text, or the hub cannot be reached.
    """
    from datasets import Dataset

    calibration = flow.config.calibration
    templated = tokenizer.chat_template is not None
    texts = [_text(row, tokenizer) for row in _rows(flow)]
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=calibration.max_sequence_length,
        padding=False,
        add_special_tokens=not templated,  # the template has written them already
    )
    dataset = Dataset.from_dict({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
    return dataset, _calibration_facts(dataset, calibration, templated)


def _calibration_facts(dataset: Dataset, calibration: Calibration, templated: bool) -> CalibrationFacts:
    tokens = sum(len(row) for row in dataset["input_ids"])
    return CalibrationFacts(
        source=_source_text(calibration),
        samples=len(dataset),
        tokens=tokens,
        padding_fraction=1 - sum(sum(mask) for mask in dataset["attention_mask"]) / tokens,
        chat_template=templated,
    )


def _source_text(calibration: Calibration) -> str:
    if (packaged := calibration.packaged) is not None:
        return f"{packaged.package}=={packaged.version}: {packaged.path}"
    dataset = calibration.dataset
    return ":".join(part for part in (dataset.path, dataset.name, dataset.split) if part)


def _text(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """A row as the model will read it; plain text is the user's turn of a chat model."""
    messages = row.get("messages") or [{"role": "user", "content": row.get("text")}]
    if not all(isinstance(m, dict) and m.get("content") and m.get("role") for m in messages):
        raise FlowError(
            f"A calibration row has neither messages nor text: {str(row)[:120]}",
            "Rows are {'messages': [{'role': ..., 'content': ...}]} or {'text': ...}.",
        )
    if tokenizer.chat_template is not None:
        return tokenizer.apply_chat_template(messages, tokenize=False)
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
            f"calibration.samples is {calibration.samples}, but {_source_text(calibration)} gave {len(rows)} texts.",
            "Lower calibration.samples, or run 00_Setup again if it was raised since.",
        )
    return rows


def _packaged_rows(flow: Flow) -> list[dict[str, Any]]:
    """The rows that 00_Setup wrote, already in an order decided by the seed."""
    from model_serve_flow.packaged_data import read_rows

    path = flow.workspace.data / "calibration.jsonl"
    if not path.is_file():
        raise FlowError(f"{path} is missing.", "Run 00_Setup: it writes the calibration texts.")
    return read_rows(path)[: flow.config.calibration.samples]


def _hub_rows(source: HubDataset, samples: int, seed: int) -> list[dict[str, Any]]:
    """Streams only as much of the dataset as the shuffle needs, instead of downloading all of it."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        stream = load_dataset(source.path, source.name, split=source.split, revision=source.revision, streaming=True)
        rows = list(stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(samples))
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise FlowError(
            f"Calibration dataset {source.path!r} cannot be loaded: {str(error).splitlines()[0]}",
            "Check calibration.dataset (path, name, split, revision), the network and HF_TOKEN, or use a local folder.",
        ) from error
    if rows and source.column not in rows[0]:
        raise FlowError(
            f"Dataset {source.path!r} has no column {source.column!r}; it has {', '.join(rows[0])}.",
            "Set calibration.dataset.column.",
        )
    return [{"text" if isinstance(row[source.column], str) else "messages": row[source.column]} for row in rows]
