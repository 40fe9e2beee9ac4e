"""`manifest.json`: what a run used (hardware, versions, hashes, times),
gathered by many writers.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.files import locked, read_json, write_json


def update_manifest(
    workspace: Workspace, *, replace: bool = False, **sections: Any
) -> dict[str, Any]:
    """Merges sections into the manifest and returns it whole.

    A section that is a mapping (or a pydantic model) gains and replaces keys; any other value
    replaces the section, as does every value with `replace`.
    Writers in several processes wait for each other, so none loses the other's sections.

    Raises:
        FlowError: the manifest on disk is not valid JSON.
    """
    with locked(workspace.manifest):
        manifest = read_manifest(workspace)
        for name, value in sections.items():
            content = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            both = (
                not replace and isinstance(content, dict) and isinstance(manifest.get(name), dict)
            )
            manifest[name] = {**manifest[name], **content} if both else content
        write_json(workspace.manifest, manifest)
    return manifest


def read_manifest(workspace: Workspace) -> dict[str, Any]:
    """The manifest; empty if nothing was written yet. FlowError if it is not valid JSON."""
    return read_json(workspace.manifest) if workspace.manifest.exists() else {}


def set_aside_damaged(workspace: Workspace) -> Path | None:
    """Moves a manifest that is not JSON to `manifest.damaged.json`, so that a run can go on.

    Every step then counts as not done. Results of the same model and protocol are kept by the steps
    themselves.

    Returns:
        Where it is now; none where there is none, or it is in order.
    """
    if not workspace.manifest.is_file():
        return None
    try:
        json.loads(workspace.manifest.read_text(encoding="utf-8"))
    except ValueError:
        return workspace.manifest.replace(workspace.manifest.with_name("manifest.damaged.json"))
    return None


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Distribution name -> installed version, None where it is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
