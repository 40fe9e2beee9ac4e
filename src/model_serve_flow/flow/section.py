"""Defines what every section of a profile is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a profile; it is frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
