"""Starts the command line without make: `PYTHONPATH=src python3 -m model_serve_flow run`.

It first builds the environment `notebook` with the standard library alone, and then continues in
this environment. The arguments are those of `model-serve-flow`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.system.environments import (
    ensure,
    environment,
    environments_folder,
    is_ready,
    lock_path,
)
from model_serve_flow.system.places import usable_places
from model_serve_flow.system.streams import show_what_can_be_shown
from model_serve_flow.system.tools import provide


def main(arguments: list[str]) -> int:
    """Runs the command line in the environment `notebook`.

    Returns:
        1 if the environment cannot be built; the reason is printed. Otherwise it does not return.
    """
    built = environment("notebook")
    show_what_can_be_shown()
    try:
        os.environ.update(usable_places(os.environ))
        if Path(sys.prefix).resolve() != built.folder and not is_ready("notebook", "cpu"):
            tools = provide(environments_folder() / "bootstrap", lock_path("notebook", "cpu"))
            sys.path.insert(0, str(tools))
            print(f"Building the notebook environment in {built.folder} ...", flush=True)
            ensure("notebook", "cpu")
    except FlowError as error:
        print(f"{error.problem}\n{error.hint}", file=sys.stderr)
        return 1
    os.execv(built.python, [str(built.python), "-m", "model_serve_flow.cli", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
