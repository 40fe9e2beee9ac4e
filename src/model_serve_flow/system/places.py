"""Finds where a user may write: a container may have no home, a read-only home, or no user name.

Needs only the standard library.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.system.checkout import checkout
from model_serve_flow.system.variables import value

NOBODY = "user"  # name for a user id without a name
# A socket's path has at most 107 bytes. vLLM's sockets are called like this folder and 37 more.
LONGEST_TEMPORARY = 70
SHORT_TEMPORARY = Path("/tmp")
REPLACED_HOME = ".home"  # folder that takes the place of a home that cannot be written


def usable_places(surrounding: Mapping[str, str]) -> dict[str, str]:
    """Returns variables for a home, a user name and a folder for temporary files, where needed.

    Raises:
        FlowError: no folder can be written.
    """
    places = own_places()
    return {**temporary_variables(places), **home_variables(surrounding, places)}


def home_variables(surrounding: Mapping[str, str], places: Iterable[Path]) -> dict[str, str]:
    """Returns variables that give every program a home that can be written, and a user name.

    Jupyter, pip, uv and the hub's client store caches, kernels and settings in the home by default.

    Args:
        surrounding: the environment.
        places: folders to try if the home cannot be written. In the first writable folder, `.home`
            is created.

    Returns:
        Empty if home and name are there.

    Raises:
        FlowError: no folder can be written.
    """
    variables = {} if _has_name(surrounding) else {"USER": NOBODY, "LOGNAME": NOBODY}
    home = surrounding.get("HOME") or _home_of_user()
    if home is not None and writable(Path(home)):
        return {**variables, **({} if surrounding.get("HOME") else {"HOME": home})}
    temporary = _temporary_folder()
    tried = [*places, *([] if temporary is None else [temporary])]
    for place in tried:
        if writable(place):
            folder = place / REPLACED_HOME
            folder.mkdir(parents=True, exist_ok=True)
            return {**variables, "HOME": str(folder)}
    raise FlowError(
        f"HOME ({home}) cannot be written, and neither can {', '.join(map(str, tried))}.",
        "Set HOME to a folder that you can write, such as the volume of your workbench.",
    )


def temporary_variables(places: Iterable[Path]) -> dict[str, str]:
    """Returns `TMPDIR` if the folder for temporary files is missing, or too long for sockets.

    Args:
        places: folders to try. In the first that fits, `.tmp` is created.

    Returns:
        Empty if the present folder can be used.

    Raises:
        FlowError: no folder can be used.
    """
    present = _temporary_folder()
    if present is not None and _short_enough(present):
        return {}
    tried = [SHORT_TEMPORARY, *(place / ".tmp" for place in places)]
    for folder in tried:
        if _short_enough(folder) and writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.tempdir = None  # forget what Python found before
            return {"TMPDIR": str(folder)}
    raise FlowError(
        f"No folder for temporary files can be used: not {present or 'that of TMPDIR'}, nor "
        f"{', '.join(map(str, tried))}.",
        f"Set TMPDIR to a folder that you can write, with at most {LONGEST_TEMPORARY} characters: "
        "the sockets of vLLM are in it.",
    )


def own_places() -> list[Path]:
    """Lists folders that the flow writes anyway: the artifacts, and the checkout if any."""
    named = value("artifacts")
    places = [Path(named).expanduser()] if named else []
    try:
        return [*places, checkout()]
    except FlowError:  # the library is installed without its checkout
        return places


def writable(folder: Path) -> bool:
    """Checks whether a file can be created in a folder, or in its nearest existing parent.

    The check writes a file, so it also detects a read-only file system.
    """
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if there is None:
        return False
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def _has_name(surrounding: Mapping[str, str]) -> bool:
    if any(surrounding.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return True
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _home_of_user() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none can be written
        return None


def _short_enough(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= LONGEST_TEMPORARY
