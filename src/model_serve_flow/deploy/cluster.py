"""Writes what depends on the cluster into the manifests: its GPUs, nodes, rights and access."""

from __future__ import annotations

import re
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import Model
from model_serve_flow.serve.engine import DEPLOY
from model_serve_flow.serve.vllm import engine_arguments
from model_serve_flow.system.gpus import find_gpus, mig_profile

PORT = 8080
WHOLE_GPU = "nvidia.com/gpu"
MODE = "serving.kserve.io/deploymentMode"
DIGEST = "model-serve-flow/sha256"
AUTH = "security.opendatahub.io/enable-auth"
# OpenShift AI shows the metrics of runtimes whose pods have these annotations.
POD_ANNOTATIONS = {
    "opendatahub.io/kserve-runtime": "vllm",
    "prometheus.io/path": "/metrics",
    "prometheus.io/port": str(PORT),
}

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?", re.ASCII)
_STORAGE = re.compile(
    r"(pvc|s3|gs|hf|https?|hdfs|webhdfs)://[\w.~:/%+=-]+"
    r"|oci://[\w.:/-]+(@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


def metadata(config: FlowConfig, resource: str) -> dict[str, Any]:
    """Returns a manifest's name, namespace and labels.

    Raises:
        FlowError: `deploy.labels` changes a label of the flow.
    """
    own = {
        "app.kubernetes.io/name": resource,
        "app.kubernetes.io/managed-by": "model-serve-flow",
    }
    _require_new("deploy.labels", config.deploy.labels, own)
    labels = {**own, **config.deploy.labels}
    return {"name": resource, "namespace": config.deploy.namespace, "labels": labels}


def service_annotations(config: FlowConfig, model: Model) -> dict[str, str]:
    """Returns the annotations of the InferenceService.

    Raises:
        FlowError: `deploy.annotations` changes an annotation of the flow.
    """
    # Standard is a plain Deployment: a model loads for minutes, so it must not scale to zero.
    own = {MODE: "Standard", DIGEST: model.sha256}
    if config.deploy.auth == "openshift":
        own[AUTH] = "true"
    _require_new("deploy.annotations", config.deploy.annotations, {**own, AUTH: ""})
    return {**own, **config.deploy.annotations}


def _require_new(key: str, given: dict[str, str], own: dict[str, str]) -> None:
    if both := sorted(set(given) & set(own)):
        raise FlowError(
            f"{key} holds {both[0]}, which the flow writes itself.",
            "Remove it (deploy.auth decides about authentication).",
        )


def pod_settings(config: FlowConfig) -> dict[str, Any]:
    """Returns the predictor's settings that say on which nodes, and with which rights, it runs."""
    deploy = config.deploy
    tolerations = [each.model_dump(exclude_none=True) for each in deploy.tolerations]
    settings = {
        "serviceAccountName": deploy.service_account_name,
        "nodeSelector": dict(deploy.node_selector),
        "tolerations": tolerations,
    }
    return {key: value for key, value in settings.items() if value}


def gpu_amount(config: FlowConfig) -> dict[str, str]:
    """Returns the GPUs that the pod asks for: as many as the engine takes.

    They are MIG instances if the profile says so, or if this machine's GPU is one, because a whole
    GPU would be another device than the one that was measured.
    """
    resource = config.deploy.gpu_resource or _measured_resource()
    return {resource: str(config.engine.gpus)}


def _measured_resource() -> str:
    gpus, _ = find_gpus()
    profile = mig_profile(gpus[0]) if gpus else None
    return f"nvidia.com/mig-{profile}" if profile else WHOLE_GPU


# key of `deploy` -> what Kubernetes takes, and a hint
_RULES = {
    "namespace": (_DNS_LABEL, "Lower-case letters, digits and '-', at most 63."),
    "image": (_IMAGE, "Example: registry/name:tag, or registry/name@sha256:…"),
    "storage_uri": (
        _STORAGE,
        "Example: pvc://claim/folder, s3://bucket/folder or oci://registry/name@sha256:… with 64 "
        "hexadecimal digits; no credentials.",
    ),
}


def require_safe(config: FlowConfig) -> None:
    """Checks that Kubernetes neither rejects nor misreads a value.

    Raises:
        FlowError: names the key and the value.
    """
    for key, (allowed, hint) in _RULES.items():
        value = getattr(config.deploy, key)
        if not allowed.fullmatch(value):
            raise FlowError(f"deploy.{key} is {value!r}, which cannot go into a manifest.", hint)
    for argument in engine_arguments(config, DEPLOY):
        if "{{" in argument:
            raise FlowError(
                f"engine.extra_arguments holds {argument!r}: KServe would fill in what stands in "
                f"{{{{ }}}}."
            )
