"""Refuses a model folder that could run code, read other files or exhaust memory when loaded."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.system.files import read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
SHARD_INDEX = "model.safetensors.index.json"
# keys of transformers' configuration files
REMOTE_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
VOCABULARIES = ("tokenizer.json", "vocab.json")  # long, and contain no code
# the longest settings file is a shard index: about 10 MB for 100 000 tensors
SETTINGS_BYTES = 64 << 20
HEADER_BYTES = 100_000_000  # safetensors' own limit
TEMPLATE_SECONDS = 10


def refuse_hostile(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Checks what a model's author controls: files, settings, headers and chat templates.

    It loads none of it.

    Args:
        folder: the checkpoint; every file in it is optional.
        trust_remote_code: accept Python code beside the weights.

    Raises:
        FlowError: names the file and what is wrong with it.
    """
    _check_files(folder)
    if not trust_remote_code:
        for path in sorted(folder.glob("*.py")):
            raise _remote_code(path, "is Python code")
    for path in _settings(folder):
        document = strict_json(path)
        if not trust_remote_code and (key := _remote_code_key(document)):
            raise _remote_code(path, f"asks for Python code to be run ({key!r})")
        if path.name.endswith(".index.json"):
            _check_weight_map(path, document)
    for path in sorted(folder.glob("*.safetensors")):
        _check_header(path)
    for path, template in _chat_templates(folder):
        _check_template(path, template)


def strict_json(path: Path) -> Any:
    """Reads a settings file of a checkpoint.

    Raises:
        FlowError: the file is too long or not JSON.
    """
    if path.stat().st_size > SETTINGS_BYTES:
        raise FlowError(
            f"{path} has {path.stat().st_size} bytes, settings have at most {SETTINGS_BYTES}.",
            _AGAIN,
        )
    return read_json(path, _AGAIN, finite=False)


def _settings(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.glob("*.json")
        if p.name not in VOCABULARIES and not p.name.startswith(".")
    )


_AGAIN = "Copy or download the model again, from an author you trust."


def _check_files(folder: Path) -> None:
    """Checks that the folder holds only files and folders: no pickles, and no links out of it."""
    for path in sorted(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise FlowError(
            f"{path} may be a Python pickle, which can run code when it is loaded.",
            "Only safetensors are accepted: model.save_pretrained(folder) writes them; then remove "
            "this file.",
        )
    inside = _tree(folder.resolve())
    for path in sorted(folder.iterdir()):
        if not path.resolve().is_relative_to(inside):
            raise FlowError(
                f"{path} is a link that leads out of the model's folder.",
                "Put the file itself there.",
            )
        if not path.is_file() and not path.is_dir():
            raise FlowError(
                f"{path} is neither a file nor a folder.",
                "Remove it, or put the file itself there.",
            )


def _tree(folder: Path) -> Path:
    """Returns the folder in which links must stay: the model's own folder.

    In the hub's cache, the model's folder also holds its snapshots and blobs.
    """
    model = folder.parent.parent
    return (
        model if folder.parent.name == "snapshots" and model.name.startswith("models--") else folder
    )


def _remote_code(path: Path, what: str) -> FlowError:
    return FlowError(
        f"{path} {what}, and the profile does not allow the model's own code.",
        "Read that code first; then set model.trust_remote_code: true, which is recorded, or take "
        "another model.",
    )


def _remote_code_key(value: Any) -> str | None:
    """Finds a non-empty key in nested settings that makes transformers run code of the folder."""
    waiting = [value]
    while waiting:  # not recursive, because the author chooses the depth
        node = waiting.pop()
        if isinstance(node, dict):
            for key in REMOTE_CODE_KEYS:
                if node.get(key):
                    return key
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return None


def _check_weight_map(path: Path, document: Any) -> None:
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict):
        raise FlowError(f"{path} has no 'weight_map' of tensors and files.", _AGAIN)
    for tensor, shard in weight_map.items():
        plain = (
            isinstance(shard, str)
            and shard == PurePosixPath(shard).name == PureWindowsPath(shard).name
        )
        if not plain or not shard.endswith(".safetensors"):
            raise FlowError(
                f"{path} places the tensor {tensor!r:.80} in {shard!r:.80}: not the name of a "
                "*.safetensors file.",
                "A shard must lie beside its index. " + _AGAIN,
            )


def _check_header(path: Path) -> None:
    """Checks that the header fits into the file; its first 8 bytes claim its length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if size < 8 or claimed > size - 8:
        raise FlowError(
            f"{path} is truncated or corrupt: it has {size} bytes, its header alone claims "
            f"{claimed}.",
            "Copy or download it again, and check the free disk space.",
        )
    if claimed > HEADER_BYTES:
        raise FlowError(
            f"{path} claims a header of {claimed} bytes; safetensors allows {HEADER_BYTES}.", _AGAIN
        )


# Chat templates are programs; they run in a sandbox.


def _chat_templates(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields every template that transformers would find, with its file."""
    for path in sorted(folder.glob("*.jinja")):
        yield path, _text(path)
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        path = folder / name
        document = strict_json(path) if path.is_file() else None
        found = document.get("chat_template") if isinstance(document, dict) else None
        for entry in found if isinstance(found, list) else [found]:
            template = entry.get("template") if isinstance(entry, dict) else entry
            if template is not None and not isinstance(template, str):
                raise FlowError(
                    f"{path}: chat_template holds {template!r:.80}, which is no text.", _AGAIN
                )
            if template is not None:
                yield path, template


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FlowError(f"{path} is not text: {error}", _AGAIN) from error


def _check_template(path: Path, template: str) -> None:
    """Renders a short conversation with the template in another process.

    The process has more time and memory than a real template needs.
    """
    if reason := _template_problem(template):
        raise FlowError(
            f"The chat template in {path} {reason}.",
            "Use the template of an author you trust; see the file.",
        )


@functools.cache  # the same model is checked at several steps
def _template_problem(template: str) -> str:
    """Says why a template is refused; empty if it is accepted."""
    command = [sys.executable, "-I", str(Path(__file__).with_name("template_probe.py"))]
    try:
        child = subprocess.run(
            command,
            input=template,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TEMPLATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {TEMPLATE_SECONDS} s"
    if child.returncode:
        return (
            f"cannot be rendered: {(child.stderr.strip().splitlines() or [child.returncode])[-1]}"
        )
    return child.stdout.strip()
