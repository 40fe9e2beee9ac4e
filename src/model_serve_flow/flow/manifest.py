"""Writes `manifest.json`, which records what a run used: hardware, versions, hashes, times."""

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
    """Merges sections into the manifest and returns the whole manifest.

    If a section is a mapping or a pydantic model, its keys are added or replaced. Any other value
    replaces the section. With `replace` every value replaces its section. Writers in several
    processes wait for each other, so no writer loses the sections of another.

    Args:
        workspace: the folders of the profile.
        replace: replaces whole sections.
        sections: name -> content.

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
    """Reads the manifest; empty if it is missing.

    Raises:
        FlowError: the manifest is not valid JSON.
    """
    return read_json(workspace.manifest) if workspace.manifest.exists() else {}


def set_aside_damaged(workspace: Workspace) -> Path | None:
    """Moves a manifest that is not JSON to `manifest.damaged.json`, so that a run can continue.

    Every step then counts as not done. The steps keep results of the same model and protocol.

    Returns:
        The new path; None if the manifest is missing or valid.
    """
    if not workspace.manifest.is_file():
        return None
    try:
        json.loads(workspace.manifest.read_text(encoding="utf-8"))
    except ValueError:
        return workspace.manifest.replace(workspace.manifest.with_name("manifest.damaged.json"))
    return None


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Returns distribution name -> installed version, or None if it is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
