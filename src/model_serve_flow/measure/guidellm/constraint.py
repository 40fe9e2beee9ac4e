"""Defines a GuideLLM constraint: a load lasts until enough requests have completed.

This module imports GuideLLM. Importing the module registers the constraint in GuideLLM's
registries, so that `--constraint` knows the kind.
"""

from __future__ import annotations

import time
from typing import Any, Literal, cast

from guidellm.scheduler.constraints import (
    Constraint,
    ConstraintsInitializerFactory,
    PydanticConstraintInitializer,
)
from guidellm.scheduler.schemas import SchedulerProgress, SchedulerState, SchedulerUpdateAction
from guidellm.schemas import RequestInfo
from guidellm.schemas.scheduler.constraints import ConstraintArgs
from pydantic import Field, PrivateAttr

KIND = "enough_requests"


@ConstraintArgs.register(KIND)
class EnoughRequestsArgs(ConstraintArgs):
    """How long a load lasts; seconds count from its first request and include the warm-up."""

    kind: Literal["enough_requests"] = KIND
    requests: int = Field(gt=0, description="completed requests, those of the warm-up left out")
    warmup_seconds: float = Field(
        ge=0, description="a request that completes earlier does not count"
    )
    least_seconds: float = Field(gt=0, description="the load lasts at least this long")
    max_seconds: float = Field(gt=0, description="the load ends then, with however few requests")


@ConstraintsInitializerFactory.register(KIND)
class EnoughRequests(PydanticConstraintInitializer):
    """Ends a load after `least_seconds` once `requests` have completed.

    The load ends after `max_seconds` in any case. A failed request makes the load invalid, so it
    also ends the load after `least_seconds`.
    """

    type_: Literal["enough_requests"] = KIND  # type: ignore[assignment]
    args: EnoughRequestsArgs
    _completed: int = PrivateAttr(0)

    def create_constraint(self, **_: Any) -> Constraint:
        """Creates a new constraint for each load, because a constraint counts requests."""
        return cast("Constraint", EnoughRequests(args=self.args))

    def __call__(self, state: SchedulerState, request: RequestInfo | None) -> SchedulerUpdateAction:
        args, now, start = self.args, time.time(), state.start_requests_time or state.start_time
        ended = (
            request.completed_at if request is not None and request.status == "completed" else None
        )
        self._completed += ended is not None and ended >= start + args.warmup_seconds
        satisfied = self._completed >= args.requests or state.errored_requests > 0
        stop = now - start >= args.max_seconds or (now - start >= args.least_seconds and satisfied)
        return SchedulerUpdateAction(
            request_queuing="stop" if stop else "continue",
            request_processing="stop_local" if stop else "continue",
            stopping_scope=args.stopping_scope,
            metadata={"completed": self._completed, "elapsed_time": now - start},
            progress=SchedulerProgress(
                remaining_duration=max(0.0, args.max_seconds - (now - start)),
                total_duration=args.max_seconds,
                stop_time=now if stop else None,
            ),
        )
