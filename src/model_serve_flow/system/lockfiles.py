"""Reads and writes the environments' locks: requirements files of exact versions with hashes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

HASH = re.compile(r"\s--hash=(\S+)")


@dataclass(frozen=True)
class Pin:
    """One entry of a lock.

    Attributes:
        line: the requirement, before the hashes.
        hashes: `algorithm:digest` of each file of the release.
    """

    line: str
    hashes: tuple[str, ...] = ()

    @property
    def requirement(self) -> Requirement:
        return Requirement(self.line)

    @property
    def name(self) -> str:
        return self.requirement.name

    @property
    def version(self) -> Version:
        (specifier,) = self.requirement.specifier
        return Version(specifier.version)

    def __str__(self) -> str:
        return " \\\n    ".join([self.line, *(f"--hash={digest}" for digest in self.hashes)])


def read(path: Path) -> list[Pin]:
    """Reads the entries of a lock in order, without comments."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    entries = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    return [
        Pin(HASH.split(entry, maxsplit=1)[0].strip(), tuple(HASH.findall(entry)))
        for entry in entries
    ]


def write(path: Path, pins: list[Pin]) -> None:
    """Writes the entries in the format of uv."""
    path.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
