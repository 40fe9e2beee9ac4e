"""Finds a secret where it must not be: on command lines while something runs,
and in the files it leaves.
"""

from __future__ import annotations

import base64
import contextlib
import json
import mmap
import threading
import urllib.parse
from pathlib import Path
from typing import Self

import psutil

LEAST_BYTES = 16


class ProcessWatch:
    """`with ProcessWatch(canary) as watch:` looks at the command line of every process,
    several times a second.

    Attributes:
        found: process id -> command line, of those that held the canary.
        samples: how often all processes were looked at.
        seen: ids of all processes that were looked at, as a proof that the watch could see
            anything.
    """

    def __init__(self, canary: str, seconds: float = 0.2) -> None:
        self.canary, self.seconds = canary, seconds
        self.found: dict[int, list[str]] = {}
        self.seen: set[int] = set()
        self.samples = 0
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="process watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # a watch that died found nothing, which must not look like a clean run
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        try:
            while True:
                self._sample()
                if self._stop.wait(self.seconds):
                    return
        except BaseException as failure:
            self._failure = failure

    def _sample(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                line = process.cmdline()
                self.seen.add(process.pid)
                if any(self.canary in argument for argument in line):
                    self.found[process.pid] = line
        self.samples += 1


def files_with(root: Path, canary: bytes) -> list[Path]:
    """The files under `root`, sorted, that hold the canary in any form of `forms`,
    or have it in their path.

    Every byte is searched: a database or a notebook holds text as it is. Compressed files are not
    opened. A file that cannot be read is an error (OSError), for it may hold anything.

    Raises:
        ValueError: the canary is shorter than 16 bytes, so that one of its forms could be there by
            chance.
    """
    wanted = forms(canary)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [
        path
        for path in files
        if _holds(path, wanted) or canary in str(path.relative_to(root)).encode()
    ]


def forms(canary: bytes) -> set[bytes]:
    """The canary as it is, in JSON (once and twice, as a notebook inside a string), URL-quoted,
    and in base64.
    """
    if len(canary) < LEAST_BYTES:
        raise ValueError(f"the canary has {len(canary)} bytes, at least {LEAST_BYTES} are needed")
    text = canary.decode()
    once = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    twice = {json.dumps(form)[1:-1] for form in once}
    quoted = {
        urllib.parse.quote(text, safe=""),
        urllib.parse.quote(text),
        urllib.parse.quote_plus(text),
    }
    return {canary, *(form.encode() for form in once | twice | quoted), *_in_base64(canary)}


def _in_base64(canary: bytes) -> set[bytes]:
    """What base64 of any text with the canary in it contains:
    it depends on how many bytes come before, modulo 3.
    """
    found = set()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + canary)
        # The characters at either end are also made of the bytes before and behind.
        first, last = -(-before * 8 // 6), (before + len(canary)) * 8 // 6
        found |= {whole[first:last], whole[first:last].replace(b"+", b"-").replace(b"/", b"_")}
    return found


def _holds(path: Path, wanted: set[bytes]) -> bool:
    if path.stat().st_size == 0:  # cannot be mapped
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(form) >= 0 for form in wanted)
