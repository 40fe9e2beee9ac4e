"""Defines the base class of every result, and the kinds of numbers in results."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Base class of results; unknown keys are errors, so a result of another schema is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
