"""Defines the profile's section `deploy`: what 07 serves, and where on a cluster it goes."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from model_serve_flow.flow.section import Section

_NAME = r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
_PREFIX = r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^{_PREFIX}{_NAME}$")]
LabelValue = Annotated[str, StringConstraints(pattern=rf"^{_NAME}?$")]
ResourceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
MIG = r"mig-[0-9]+(c\.[0-9]+)?g\.[0-9]+gb(\.me)?"
GpuResource = Annotated[str, StringConstraints(pattern=rf"^nvidia\.com/(gpu|{MIG})(\.shared)?$")]


def _optional(description: str) -> Any:
    """Returns a key that is absent by default; a profile without it keeps its earlier digest."""
    return Field(default=None, exclude_if=operator.not_, description=description)


class Toleration(Section):
    """A taint of nodes that the pod accepts, in Kubernetes' own words."""

    key: LabelKey | None = Field(default=None, description="none: every taint, with Exists")
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="none: every effect"
    )

    @model_validator(mode="after")
    def value_fits_operator(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value: remove it, or use Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key, or use Exists")
        return self


class Deploy(Section):
    """What 07 serves and writes manifests for, and what the serving machine costs."""

    hourly_price_usd: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="of the serving machine, for the cost per million output tokens; none: no cost",
    )
    candidate: str | None = Field(default=None, description="none: the candidate recommended by 06")
    override_reason: str = Field(
        default="",
        description="why a checkpoint without the verdict SHIP is deployed all the same; goes into "
        "the record",
    )
    namespace: str = "model-serve-flow"
    storage_uri: str = Field(
        description="where the cluster finds the checkpoint, e.g. pvc://models/llama, s3://… or "
        "oci://…@sha256:…"
    )
    image: str = Field(description="container image of the vLLM server")
    runtime: ResourceName | None = _optional(
        "an existing ServingRuntime of the cluster; none: 07 writes one"
    )
    auth: Literal["key", "openshift"] = Field(
        default="key",
        exclude_if=lambda found: found == "key",
        description="key: the server asks for a key out of a Secret; openshift: OpenShift AI asks "
        "for a token of the cluster before the server",
    )
    gpu_resource: GpuResource | None = _optional(
        "what the pod asks for, such as nvidia.com/mig-1g.10gb; none: the MIG instance that 07 "
        "runs on, else nvidia.com/gpu"
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(), exclude_if=operator.not_, description="taints of nodes that the pod accepts"
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default={}, exclude_if=operator.not_, description="labels that the pod's node must have"
    )
    service_account_name: ResourceName | None = _optional(
        "whose rights and storage credentials the pod has; none: the namespace's default"
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default={}, exclude_if=operator.not_, description="more labels of both manifests"
    )
    annotations: dict[LabelKey, str] = Field(
        default={}, exclude_if=operator.not_, description="more annotations of the service"
    )
