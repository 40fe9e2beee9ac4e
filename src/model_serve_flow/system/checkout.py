"""Where this project lies on disk: profiles, notebooks,
locks and artifacts are found from its root.
"""

from __future__ import annotations

from pathlib import Path

from model_serve_flow.errors import FlowError

MODULES = Path("examples") / "model-serve-flow"


def checkout() -> Path:
    """The root of the checkout that holds the library, else of the one around the working folder.

    The runner's environments use the library where it lies. After `pip install .` of one module it
    lies in site-packages, and the notebook's own folder leads to the root.

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
