from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from factories import engine, model, sample_comparison

from model_serve_flow.deploy.choice import choose
from model_serve_flow.deploy.commands import apply_commands
from model_serve_flow.deploy.endpoint_checks import EndpointCheck
from model_serve_flow.deploy.kserve import (
    inference_service,
    resource_name,
    serving_runtime,
    validate_manifest,
)
from model_serve_flow.deploy.record import write_deployment
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.flow.results.shipped import ShipDecision, ShipOverride
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.serve.vllm import engine_arguments
from model_serve_flow.system.digests import file_digest

KEY = "sk-very-secret-key"
MODEL = "w8a8-int8"


def open_flow(tmp_path: Path, profile: str = "cpu-smollm2", **overrides: object) -> Flow:
    return Flow.open(
        profile, {key.replace("__", "."): value for key, value in overrides.items()}, tmp_path
    )


def with_verdicts(**verdicts: str) -> Comparison:
    comparison = sample_comparison()
    changed = tuple(
        c.model_copy(update={"verdict": verdicts[c.name[:4]]}) for c in comparison.candidates
    )
    return comparison.model_copy(update={"candidates": changed})


# --- which model


def test_the_recommended_candidate_is_chosen(tmp_path):
    choice = choose(open_flow(tmp_path), sample_comparison())
    assert (choice.name, choice.verdict, choice.explicit) == (MODEL, "SHIP", False)


def test_nothing_may_ship_so_the_base_is_deployed_and_it_is_said(tmp_path):
    comparison = with_verdicts(w8a8="INCONCLUSIVE", w4a1="DO NOT SHIP")
    choice = choose(open_flow(tmp_path), comparison)
    assert choose(open_flow(tmp_path), comparison).name == "base"
    assert choice.verdict is None
    assert "No candidate may ship" in choice.why and "w8a8-int8: INCONCLUSIVE" in choice.why


def test_a_candidate_that_may_not_ship_is_chosen_only_by_name_and_it_is_said(tmp_path):
    choice = choose(open_flow(tmp_path, deploy__candidate="w4a16-int4"), sample_comparison())
    assert (choice.name, choice.verdict, choice.explicit) == ("w4a16-int4", "DO NOT SHIP", True)
    assert "though its verdict is DO NOT SHIP" in choice.why


def test_a_named_candidate_must_have_been_compared(tmp_path):
    comparison = sample_comparison()
    only_int8 = comparison.model_copy(update={"candidates": comparison.candidates[:1]})
    with pytest.raises(FlowError, match="holds no candidate 'w4a16-int4'"):
        choose(open_flow(tmp_path, deploy__candidate="w4a16-int4"), only_int8)


# --- manifests


@pytest.mark.parametrize("profile", ["cpu-smollm2", "gpu-llama-3.1-8b"])
def test_both_manifests_are_valid(tmp_path, profile):
    flow = open_flow(tmp_path, profile)
    validate_manifest(serving_runtime(flow, MODEL))
    validate_manifest(
        inference_service(flow, model(MODEL), sample_comparison(), cores=2, run_as_user=1000)
    )


def _container(document: dict) -> dict:
    return document["spec"]["containers"][0]


def _set(document: dict, value: object, *path: object) -> None:
    for part in path[:-1]:
        document = document[part]
    document[path[-1]] = value


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        ("x", ("spec", "replica"), "'replica' was unexpected"),
        (
            "x",
            ("spec", "containers", 0, "readOnlyRootFilesystem"),
            "'readOnlyRootFilesystem' was unexpected",
        ),
        ({}, ("spec", "containers", 0, "startupProbe", "http"), "'http' was unexpected"),
        ("no", ("spec", "multiModel"), "is not of type 'boolean'"),
        (8080, ("spec", "containers", 0, "args", 0), "is not of type 'string'"),
        (
            "8080",
            ("spec", "containers", 0, "ports", 0, "containerPort"),
            "is not of type 'integer'",
        ),
        ({}, ("spec", "containers", 0, "env", 0), "'name' is a required property"),
        ("serving.kserve.io/v1beta9", ("apiVersion",), "Unknown manifest"),
    ],
)
def test_what_the_sdk_does_not_know_is_refused(tmp_path, value, path, said):
    document = serving_runtime(open_flow(tmp_path), MODEL)
    _set(document, value, *path)
    with pytest.raises(FlowError) as caught:
        validate_manifest(document)
    assert said in str(caught.value)


def test_an_unknown_field_of_the_inference_service_is_refused(tmp_path):
    document = inference_service(open_flow(tmp_path), model(MODEL), sample_comparison())
    document["spec"]["predictor"]["model"]["storageURI"] = "pvc://x/y"
    with pytest.raises(FlowError, match="storageURI"):
        validate_manifest(document)


@pytest.mark.parametrize("profile", ["cpu-smollm2", "gpu-llama-3.1-8b"])
def test_the_flags_are_those_that_were_measured_but_for_the_prefix_cache(tmp_path, profile):
    flow = open_flow(tmp_path, profile)
    measured = engine_arguments(flow.config, "performance")
    measured.remove("--no-enable-prefix-caching")
    arguments = _container(serving_runtime(flow, MODEL))["args"]
    assert arguments[-len(measured) :] == measured
    assert not any("prefix-caching" in argument for argument in arguments)


def test_the_key_is_a_reference_and_never_a_value(tmp_path):
    variables = {
        v["name"]: v for v in _container(serving_runtime(open_flow(tmp_path), MODEL))["env"]
    }
    key = variables["VLLM_API_KEY"]
    assert "value" not in key
    assert key["valueFrom"]["secretKeyRef"] == {
        "name": "smollm2-135m-instruct-w8a8-int8-api-key",
        "key": "api-key",
    }


def test_the_container_is_confined_and_can_write_only_to_volumes(tmp_path):
    container = _container(serving_runtime(open_flow(tmp_path), MODEL))
    context = container["securityContext"]
    assert (
        context["runAsNonRoot"]
        and context["readOnlyRootFilesystem"]
        and not context["allowPrivilegeEscalation"]
    )
    assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {
        "type": "RuntimeDefault"
    }
    caches = [v["value"] for v in container["env"] if v.get("value", "").startswith("/")]
    assert caches and all(path.startswith("/tmp") for path in caches)
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp", "/dev/shm"}


def test_start_up_may_take_as_long_as_the_profile_allows(tmp_path):
    probe = _container(serving_runtime(open_flow(tmp_path, engine__startup_seconds=455), MODEL))[
        "startupProbe"
    ]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 455


def test_resources_follow_what_was_measured(tmp_path):
    def resources(profile: str) -> dict:
        service = inference_service(
            open_flow(tmp_path, profile), model(MODEL), sample_comparison(), cores=2
        )
        return service["spec"]["predictor"]["model"]["resources"]

    cpu, gpu = resources("cpu-smollm2"), resources("gpu-llama-3.1-8b")
    # 1.25 x 1.68 GiB, rounded up, + 1 GiB
    assert cpu["limits"] == cpu["requests"] == {"cpu": "2", "memory": "4Gi"}
    assert gpu["limits"]["nvidia.com/gpu"] == gpu["requests"]["nvidia.com/gpu"] == "1"


def test_the_manifest_asks_for_as_many_gpus_as_the_engine_takes(tmp_path):
    flow = open_flow(
        tmp_path, "gpu-llama-3.1-8b", engine__tensor_parallel=2, engine__pipeline_parallel=2
    )
    service = inference_service(flow, model(MODEL), sample_comparison())
    assert service["spec"]["predictor"]["model"]["resources"]["limits"]["nvidia.com/gpu"] == "4"
    arguments = _container(serving_runtime(flow, MODEL))["args"]
    assert arguments[arguments.index("--tensor-parallel-size") + 1] == "2"
    assert arguments[arguments.index("--pipeline-parallel-size") + 1] == "2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deploy__namespace", "a\nkind: Secret"),
        ("deploy__namespace", "../default"),
        ("deploy__namespace", "x" * 64),
        ("deploy__image", "vllm:1; rm -rf /"),
        ("deploy__image", "vllm:1\nfoo: bar"),
        ("deploy__storage_uri", "s3://user:secret@bucket/model"),
        ("deploy__storage_uri", "https://host/model?token=secret"),
        ("deploy__storage_uri", "/mnt/models"),
        ("deploy__storage_uri", f"oci://registry/model@sha256:{'a' * 63}"),
        ("deploy__storage_uri", "oci://user:secret@registry/model"),
        ("deploy__storage_uri", f"pvc://claim/model@sha256:{'a' * 64}"),
        ("engine__extra_arguments", ["--chat-template", "{{ .Name }}"]),
    ],
)
def test_hostile_values_are_refused_without_showing_secrets(tmp_path, key, value):
    flow = open_flow(tmp_path, **{key: value})
    with pytest.raises(FlowError) as caught:
        serving_runtime(flow, MODEL)
    assert KEY not in str(caught.value)
    with pytest.raises(FlowError):
        inference_service(flow, model(MODEL), sample_comparison())


def test_kubernetes_does_not_expand_an_argument(tmp_path):
    flow = open_flow(
        tmp_path, engine__extra_arguments=["--override-generation-config", "$(VLLM_API_KEY)"]
    )
    assert _container(serving_runtime(flow, MODEL))["args"][-1] == "$$(VLLM_API_KEY)"


@pytest.mark.parametrize(
    "base", ["Llama-3.1_8B", "8B", "名前", "a" * 200, "-x-", "UPPER case: yes"]
)
def test_resource_names_are_dns_labels_and_differ(tmp_path, base):
    config = open_flow(tmp_path, model__name=base).config
    one, other = resource_name(config, "w8a8-int8"), resource_name(config, "w8a8.int8-b")
    assert one != other
    for name in (one, other):
        assert len(name) <= 40 and name[0].isalpha() and name[-1].isalnum() and name.isascii()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_commands_keep_the_key_off_every_command_line(tmp_path):
    text = apply_commands(open_flow(tmp_path).config, MODEL)
    assert (
        "--from-literal" not in text
        and '-H "Authorization' not in text
        and "--from-file=api-key=/dev/stdin" in text
    )
    assert "smollm2-135m-instruct-w8a8-int8-predictor" in text


# --- the record


@pytest.fixture
def shipped(tmp_path):
    """A flow with a checkpoint, the decision to ship it, and passed checks."""
    flow = open_flow(tmp_path)
    folder = flow.workspace.model(MODEL)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    digest = describe_model(MODEL, folder).sha256
    names = (
        "health",
        "model list",
        "chat",
        "streaming",
        "missing key",
        "wrong key",
        "wrong model",
        "prompt too long",
    )
    checks = tuple(
        EndpointCheck(name=name, expected="200", got="200", ok=True, detail="", milliseconds=3.0)
        for name in names
    )
    return flow, ShipDecision(name=MODEL, sha256=digest, verdict="SHIP", override=None), checks


def test_what_is_written_agrees_with_what_was_measured(shipped):
    flow, decision, checks = shipped
    record = write_deployment(flow, decision, sample_comparison(), checks, engine(MODEL), cores=2)
    folder = flow.workspace.deploy
    assert {p.name for p in folder.iterdir()} == {
        "servingruntime.yaml",
        "inferenceservice.yaml",
        "README.md",
        "deployment.json",
    }
    runtime = yaml.safe_load((folder / "servingruntime.yaml").read_text())
    service = yaml.safe_load((folder / "inferenceservice.yaml").read_text())
    validate_manifest(runtime)
    validate_manifest(service)
    assert (
        service["spec"]["predictor"]["model"]["runtime"]
        == runtime["metadata"]["name"]
        == record.resource
    )
    written = json.loads((folder / "deployment.json").read_text())
    assert decision.sha256 == written["model"]["sha256"]
    assert decision.sha256 == service["metadata"]["annotations"]["model-serve-flow/sha256"]
    assert written["choice"]["verdict"] == "SHIP" and len(written["checks"]) == 8
    assert written["ship"]["override"] is None and written["runtime"] is None
    (difference,) = written["differences"]
    assert difference["setting"] == "prefix cache"
    assert "off for speed" in difference["measured"] and "on" in difference["deployed"]
    digests = {file: file_digest(folder / file) for file in record.manifests}
    assert record.manifests == digests and "deployment.json" not in digests


def test_on_a_runtime_of_the_cluster_no_runtime_is_written_and_an_earlier_one_goes(
    shipped, tmp_path
):
    flow, decision, checks = shipped
    write_deployment(flow, decision, sample_comparison(), checks, engine(MODEL), cores=2)
    theirs = open_flow(tmp_path, deploy__runtime="vllm-cuda-runtime")
    record = write_deployment(theirs, decision, sample_comparison(), checks, engine(MODEL), cores=2)
    assert not (flow.workspace.deploy / "servingruntime.yaml").exists()
    assert set(record.manifests) == {"inferenceservice.yaml", "README.md"}
    assert record.runtime == "vllm-cuda-runtime"
    assert [one.setting for one in record.differences][1] == "image and start of the server"


def test_an_override_goes_into_the_record_with_its_reason(shipped):
    flow, decision, checks = shipped
    override = ShipOverride(
        candidate=MODEL,
        reason="the demo of Monday",
        problem="The verdict is INCONCLUSIVE.",
        at="2026-01-05T09:00:00Z",
    )
    decision = decision.model_copy(update={"override": override, "verdict": "INCONCLUSIVE"})
    write_deployment(flow, decision, sample_comparison(), checks, engine(MODEL), cores=2)
    written = json.loads((flow.workspace.deploy / "deployment.json").read_text())
    assert written["ship"]["override"] == override.model_dump()


def test_nothing_is_written_after_a_failed_check(shipped):
    flow, decision, checks = shipped
    bad = (checks[0].model_copy(update={"ok": False}), *checks[1:])
    with pytest.raises(FlowError, match="health"):
        write_deployment(flow, decision, sample_comparison(), bad, engine(MODEL))
    assert not flow.workspace.deploy.exists()


def test_another_model_than_the_choice_is_refused(shipped):
    flow, decision, checks = shipped
    other = decision.model_copy(update={"name": "w4a16-int4"})
    with pytest.raises(FlowError, match="is not the choice"):
        write_deployment(flow, other, sample_comparison(), checks, engine("w4a16-int4"))


def test_a_checkpoint_changed_after_the_decision_is_refused(shipped):
    flow, decision, checks = shipped
    (flow.workspace.model(MODEL) / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(FlowError, match="changed while its endpoint was checked"):
        write_deployment(flow, decision, sample_comparison(), checks, engine(MODEL))


def test_the_base_model_under_the_candidates_name_is_refused(shipped):
    flow, decision, checks = shipped
    with pytest.raises(FlowError, match="unquantised"):
        write_deployment(flow, decision, sample_comparison(), checks, engine("base"))
