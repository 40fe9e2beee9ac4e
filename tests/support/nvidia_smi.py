"""A program called nvidia-smi that prints what is known from the field."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def line(
    number: int,
    name: str = "NVIDIA L4",
    memory: str = "23034",
    driver: str = "580.65",
    sm: str = "8.9",
) -> str:
    """One GPU, as the program's query prints it."""
    return f"GPU-{number}, {name}, {memory}, {driver}, {sm}"


def put_on_path(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *lines: str,
    xml: str = "",
    listed: str = "",
    status: int = 0,
) -> None:
    """Puts the program on PATH.

    It answers the query with the lines, `-q -x` with the XML, and `-L` with `listed`.
    """
    (folder / "csv").write_text("".join(f"{text}\n" for text in lines))
    (folder / "xml").write_text(xml)
    (folder / "listed").write_text(listed)
    tool = folder / "nvidia-smi"
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in "-q -x") cat {folder}/xml;; -L) cat {folder}/listed;; '
        "--id=*) echo 9.0;; "
        f"*) cat {folder}/csv; exit {status};; esac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
