"""What the profile says about the cluster is in the manifests, if Kubernetes takes it."""

from pathlib import Path
from typing import Any

import pytest
from factories import model, sample_comparison
from support.nvidia_smi import line, put_on_path

from model_serve_flow.deploy.commands import apply_commands
from model_serve_flow.deploy.kserve import inference_service, serving_runtime, validate_manifest
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow

MODEL, GPU_PROFILE = "w8a8-int8", "gpu-llama-3.1-8b"
DIGEST = "0123456789abcdef" * 4
LISTED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)
  MIG 1g.10gb+me  Device  0: (UUID: MIG-4d806f22-a21c-55d2-b6c5-2f9f6d0b1f0a)
  MIG 2g.20gb     Device  1: (UUID: MIG-5d806f22-a21c-55d2-b6c5-2f9f6d0b1f0a)
"""
MIG = """<nvidia_smi_log><driver_version>580.95</driver_version><gpu>
<product_name>NVIDIA H100 80GB HBM3</product_name><uuid>GPU-1</uuid><mig_devices>
<mig_device><fb_memory_usage><total>9984 MiB</total></fb_memory_usage></mig_device>
<mig_device><fb_memory_usage><total>20096 MiB</total></fb_memory_usage></mig_device>
</mig_devices></gpu></nvidia_smi_log>"""


def flow_with(tmp_path: Path, profile: str = "cpu-smollm2", **deploy: Any) -> Flow:
    return Flow.open(profile, {f"deploy.{key}": value for key, value in deploy.items()}, tmp_path)


def service_of(flow: Flow) -> dict[str, Any]:
    document = inference_service(flow, model(MODEL), sample_comparison(), cores=2)
    validate_manifest(document)
    return document


def runtime_of(flow: Flow) -> dict[str, Any]:
    document = serving_runtime(flow, MODEL)
    validate_manifest(document)
    return document


def test_nodes_rights_labels_and_annotations_of_the_profile(tmp_path: Path) -> None:
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    flow = flow_with(
        tmp_path,
        tolerations=[taint],
        node_selector={"nvidia.com/gpu.product": "NVIDIA-L40S"},
        service_account_name="models-reader",
        labels={"opendatahub.io/dashboard": "true"},
        annotations={"openshift.io/display-name": "Our small model, for all"},
    )
    service = service_of(flow)
    predictor, metadata = service["spec"]["predictor"], service["metadata"]
    assert predictor["tolerations"] == [taint]
    assert predictor["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S"}
    assert predictor["serviceAccountName"] == "models-reader"
    assert metadata["annotations"]["openshift.io/display-name"] == "Our small model, for all"
    for document in (service, runtime_of(flow)):
        assert document["metadata"]["labels"]["opendatahub.io/dashboard"] == "true"
        assert document["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "model-serve-flow"


def test_without_them_the_manifest_has_none(tmp_path: Path) -> None:
    predictor = service_of(flow_with(tmp_path))["spec"]["predictor"]
    assert not {"tolerations", "nodeSelector", "serviceAccountName"} & set(predictor)


def test_it_is_a_plain_deployment_whose_metrics_the_dashboard_finds(tmp_path: Path) -> None:
    flow = flow_with(tmp_path)
    annotations = service_of(flow)["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert "security.opendatahub.io/enable-auth" not in annotations
    assert runtime_of(flow)["spec"]["annotations"] == {
        "opendatahub.io/kserve-runtime": "vllm",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": "8080",
    }


def test_with_openshifts_tokens_vllm_asks_for_no_key(tmp_path: Path) -> None:
    flow = flow_with(tmp_path, auth="openshift")
    annotations = service_of(flow)["metadata"]["annotations"]
    assert annotations["security.opendatahub.io/enable-auth"] == "true"
    container = runtime_of(flow)["spec"]["containers"][0]
    assert "VLLM_API_KEY" not in {variable["name"] for variable in container["env"]}
    commands = apply_commands(flow.config, MODEL)
    assert "create token" in commands and "create secret" not in commands
    assert "--verb=get --resource=inferenceservices" in commands


def test_a_runtime_of_the_cluster_gets_the_measured_flags_variables_and_key(
    tmp_path: Path,
) -> None:
    flow = flow_with(tmp_path, runtime="vllm-cuda-runtime")
    served = service_of(flow)["spec"]["predictor"]["model"]
    assert served["runtime"] == "vllm-cuda-runtime"
    assert served["args"][:2] == ["--served-model-name", "smollm2-135m-instruct-w8a8-int8"]
    assert served["args"][served["args"].index("--max-model-len") + 1] == "2048"
    names = {variable["name"] for variable in served["env"]}
    assert {"VLLM_API_KEY", "VLLM_NO_USAGE_STATS"} <= names
    commands = apply_commands(flow.config, MODEL)
    assert "servingruntime.yaml" not in commands and "`vllm-cuda-runtime`" in commands


@pytest.mark.parametrize(
    ("listed", "given", "resource"),
    [
        (LISTED, None, "nvidia.com/mig-1g.10gb.me"),
        ("", None, "nvidia.com/gpu"),
        (LISTED, "nvidia.com/gpu", "nvidia.com/gpu"),
        (LISTED, "nvidia.com/mig-2g.20gb", "nvidia.com/mig-2g.20gb"),
    ],
)
def test_the_pod_asks_for_the_mig_instance_that_was_measured_unless_told_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listed: str,
    given: str | None,
    resource: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    smi = line(1, "NVIDIA H100 80GB HBM3", "[Insufficient Permissions]", sm="9.0")
    put_on_path(tmp_path, monkeypatch, smi, xml=MIG, listed=listed)
    service = service_of(flow_with(tmp_path, GPU_PROFILE, gpu_resource=given))
    limits = service["spec"]["predictor"]["model"]["resources"]["limits"]
    assert {key: value for key, value in limits.items() if "nvidia" in key} == {resource: "1"}


def test_mig_instances_are_not_joined(tmp_path: Path) -> None:
    overrides = {"engine.tensor_parallel": 2, "deploy.gpu_resource": "nvidia.com/mig-3g.40gb"}
    with pytest.raises(FlowError, match="CUDA joins no MIG instances"):
        Flow.open(GPU_PROFILE, overrides, tmp_path)


@pytest.mark.parametrize(
    "address",
    [f"oci://registry.local:5000/team/model@sha256:{DIGEST}", "oci://registry/model:1.0",
     "pvc://models/llama", "s3://bucket/folder", "hf://org/model:main"],
)  # fmt: skip
def test_addresses_that_kserve_knows_are_kept(tmp_path: Path, address: str) -> None:
    service = service_of(flow_with(tmp_path, storage_uri=address))
    assert service["spec"]["predictor"]["model"]["storageUri"] == address


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("tolerations", [{"key": "a", "operator": "Exists", "value": "b"}], "takes no value"),
        ("tolerations", [{"value": "b"}], "Equal needs a key"),
        ("tolerations", [{"keys": "a"}], "allowed here: effect, key, operator, value"),
        ("tolerations", [{"key": "a", "effect": "Never"}], "deploy.tolerations.0.effect"),
        ("node_selector", {"gpu": "two words"}, "deploy.node_selector"),
        ("labels", {"no spaces": "x"}, "deploy.labels"),
        ("labels", {"x": "a" * 64}, "deploy.labels"),
        ("labels", {"x": "true\n"}, "deploy.labels"),
        ("service_account_name", "Me", "deploy.service_account_name"),
        ("runtime", "a/b", "deploy.runtime"),
        ("auth", "none", "deploy.auth"),
        ("gpu_resource", "nvidia.com/mig-10gb", "deploy.gpu_resource"),
        ("gpu_resource", "amd.com/gpu", "deploy.gpu_resource"),
    ],
)
def test_what_kubernetes_would_not_take_is_refused_when_the_profile_is_read(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    with pytest.raises(FlowError) as raised:
        flow_with(tmp_path, **{key: value})
    assert said in raised.value.problem


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("labels", "app.kubernetes.io/name"),
        ("annotations", "serving.kserve.io/deploymentMode"),
        ("annotations", "security.opendatahub.io/enable-auth"),
    ],
)
def test_what_the_flow_writes_itself_is_not_overwritten(
    tmp_path: Path, key: str, name: str
) -> None:
    with pytest.raises(FlowError, match=f"deploy.{key} holds {name}"):
        service_of(flow_with(tmp_path, **{key: {name: "false"}}))
