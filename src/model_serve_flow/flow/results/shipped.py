"""Defines the ship record: which checkpoint each verdict is about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model_serve_flow.flow.results.compared import Decision, MarginSeal
from model_serve_flow.flow.results.measured import SCHEMA_VERSION, Looks
from model_serve_flow.system.records import Record


class ShippedCandidate(Record):
    """06's verdict on one candidate, bound to the digest of its checkpoint."""

    name: str
    sha256: str = Field(description="digest of the checkpoint folder, see digests.folder_digest")
    files: dict[str, str] = Field(description="path in the checkpoint folder -> SHA-256")
    verdict: Decision
    reason: str = Field(description="the one that decided")
    recommended: bool
    looks: Looks | None = Field(default=None, description="none: all items were asked at once")


class ShipOverride(Record):
    """A checkpoint that is deployed although the ship record does not allow it."""

    candidate: str
    reason: str = Field(description="as a person gave it in deploy.override_reason")
    problem: str = Field(description="what would have stopped it")
    at: str


class ShipRecord(Record):
    """06's file `report/ship-record.json`: the SHA-256 of everything a verdict is based on.

    Paths are relative to the workspace.
    """

    kind: Literal["ship-record"] = "ship-record"
    schema_version: Literal["2.0"] = SCHEMA_VERSION
    profile: str
    profile_sha256: str = Field(
        description="of the resolved profile without 'deploy', which no verdict rests on"
    )
    created_at: str
    base_sha256: str
    results: dict[str, str] = Field(description="path of a result -> SHA-256")
    comparison_sha256: str = Field(description="of report/comparison.json")
    margins: MarginSeal | None = Field(
        default=None, description="none: the margins were never sealed"
    )
    candidates: tuple[ShippedCandidate, ...]
    overrides: tuple[ShipOverride, ...] = ()


class ShipDecision(Record):
    """07's decision that a checkpoint may be deployed, and why."""

    name: str
    sha256: str = Field(description="digest of the checkpoint as it lies on the disk now")
    verdict: Decision | None = Field(
        description="as the ship record has it; none: the base, or not in the record"
    )
    override: ShipOverride | None = Field(description="none: the ship record allows it")
