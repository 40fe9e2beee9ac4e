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
REPLACED_HOME = ".home"  # folder that takes the place of a home that cannot be written


def home_variables(surrounding: Mapping[str, str], places: Iterable[Path]) -> dict[str, str]:
    """Returns variables that give every program a writable home and a user name.

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
    tried = [*places, Path(tempfile.gettempdir())]
    for place in tried:
        if writable(place):
            folder = place / REPLACED_HOME
            folder.mkdir(parents=True, exist_ok=True)
            return {**variables, "HOME": str(folder)}
    raise FlowError(
        f"HOME ({home}) cannot be written, and neither can {', '.join(map(str, tried))}.",
        "Set HOME to a folder that you can write, such as the volume of your workbench.",
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
