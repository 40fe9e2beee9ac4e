"""Finds the root of the checkout, which contains profiles, notebooks, locks and artifacts."""

from __future__ import annotations

from pathlib import Path

from model_serve_flow.errors import FlowError

MODULES = Path("examples") / "model-serve-flow"


def checkout() -> Path:
    """Returns the root of the checkout around the library, else around the working folder.

    The runner's environments import the library from the checkout. After `pip install .` of a
    single step, the library is in site-packages. Then the notebook's own folder leads to the root.

    Raises:
        FlowError: neither is inside a checkout.
    """
    for folder in (*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents):
        if (folder / MODULES / "profiles").is_dir():
            return folder
    raise FlowError(
        f"Neither the library nor the working folder {Path.cwd()} is inside a checkout of "
        "model-serve-flow.",
        "Start in a module's folder, or set MODEL_SERVE_FLOW_PROFILES and "
        "MODEL_SERVE_FLOW_ARTIFACTS.",
    )
