import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model_serve_flow import cli
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.setup.checks import Check
from model_serve_flow.setup.fit import check, require
from model_serve_flow.system import hardware as machine_module
from model_serve_flow.system.gpus import Gpu
from model_serve_flow.system.hardware import Machine
from model_serve_flow.system.sizes import GIB

ROOMY = Machine(
    os="Linux", kernel="6", python="3.12", architecture="x86_64", cpu="a CPU", cores=8,
    cpu_features=("avx2", "avx512f"), memory_bytes=999 * GIB, memory_available_bytes=900 * GIB,
    disk_free_bytes=900 * GIB, gpus=(), gpu_problem="none here",
)  # fmt: skip
PROFILE = "gpu-llama-3.1-8b"
LARGE = {"model.parameters": 70_553_706_496}


def gpu(name: str, mebibytes: int | None, capability: str, driver: str = "580.95") -> Gpu:
    size = None if mebibytes is None else mebibytes << 20
    return Gpu(name=name, memory_bytes=size, driver=driver, compute_capability=capability)


L4, H100 = gpu("NVIDIA L4", 23034, "8.9"), gpu("NVIDIA H100", 81559, "9.0")
A100, B200 = gpu("NVIDIA A100", 81920, "8.0"), gpu("NVIDIA B200", 183359, "10.0")
T4, GB10 = gpu("Tesla T4", 15360, "7.5"), gpu("NVIDIA GB10", None, "12.1")


def found(tmp_path: Path, *gpus: Gpu, **overrides: Any) -> dict[str, Check]:
    flow = Flow.open(
        PROFILE, {key.replace("__", "."): value for key, value in overrides.items()}, tmp_path
    )
    machine = ROOMY.model_copy(update={"gpus": gpus, "gpu_problem": None})
    return {item.name: item for item in check(flow, machine)}


def outcomes(checks: dict[str, Check]) -> dict[str, str]:
    return {name: item.outcome for name, item in checks.items() if item.outcome != "ok"}


def test_fp8_on_ampere_is_a_warning_that_says_what_is_lost(tmp_path: Path) -> None:
    checks = found(tmp_path, A100)
    assert outcomes(checks) == {"kernel for FP8_DYNAMIC": "warning"}
    warned = checks["kernel for FP8_DYNAMIC"]
    assert "weights only" in warned.value and "does not compute faster" in warned.advice
    assert "fp8-dynamic" in warned.needed


def test_int8_on_blackwell_is_refused_before_hours_are_spent(tmp_path: Path) -> None:
    checks = found(tmp_path, B200)
    assert outcomes(checks) == {"kernel for W8A8": "does not fit"}
    with pytest.raises(FlowError, match=r"no compiled INT8 kernel .*serves w8a8-int8"):
        require(list(checks.values()))


def test_bfloat16_on_turing_is_refused_with_the_setting_that_works(tmp_path: Path) -> None:
    small = {"model__parameters": 1_000_000_000}
    checks = found(tmp_path, T4, **small)
    assert checks["engine.dtype"].outcome == "does not fit"
    assert "engine.dtype=float16" in checks["engine.dtype"].advice
    assert "engine.dtype" not in found(tmp_path, T4, engine__dtype="float16", **small)


def test_an_old_driver_is_refused(tmp_path: Path) -> None:
    old = H100.model_copy(update={"driver": "550.54.15"})
    assert outcomes(found(tmp_path, old)) == {"GPU driver": "does not fit"}


def test_memory_that_is_not_known_is_no_reason_to_refuse(tmp_path: Path) -> None:
    only_weights = [{"name": "w4a16-int4", "recipe": {"scheme": "W4A16"}}]
    checks = found(tmp_path, GB10, candidates=only_weights)
    assert outcomes(checks) == {"GPU memory to serve": "warning"}
    assert "not known" in checks["GPU memory to serve"].value


def test_four_gpus_hold_what_one_does_not(tmp_path: Path) -> None:
    assert (
        outcomes(found(tmp_path, H100, model__parameters=70_553_706_496))["GPU memory to serve"]
        == "does not fit"
    )
    parallel = {"model__parameters": 70_553_706_496, "engine__tensor_parallel": 4}
    assert "GPU memory of each to serve" not in outcomes(found(tmp_path, *[H100] * 4, **parallel))
    too_few = found(tmp_path, *[H100] * 3, **parallel)
    assert outcomes(too_few)["GPUs"] == "does not fit"
    assert "4 NVIDIA GPUs" in too_few["GPUs"].needed


def test_four_small_gpus_serve_8b_and_one_serves_it_with_waiting(tmp_path: Path) -> None:
    assert "GPU memory of each to serve" not in outcomes(
        found(tmp_path, *[L4] * 4, engine__tensor_parallel=4)
    )
    assert outcomes(found(tmp_path, L4)) == {"GPU memory for the whole load": "warning"}


def test_the_smallest_gpu_that_is_used_decides(tmp_path: Path) -> None:
    mixed = found(tmp_path, H100, gpu("NVIDIA A2", 8192, "8.6"), engine__tensor_parallel=2)
    assert mixed["GPU memory of each to serve"].outcome == "does not fit"
    assert mixed["kernel for FP8_DYNAMIC"].outcome == "warning"
    assert outcomes(found(tmp_path, H100, gpu("NVIDIA A2", 8192, "8.6"))) == {}


def test_a_model_with_experts_needs_kernels_for_experts(tmp_path: Path) -> None:
    mixtral = {
        **{
            "model_type": "mixtral",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
        },
        **{
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "num_local_experts": 4,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(mixtral))
    checks = found(tmp_path, H100, model__source=str(tmp_path))
    assert "MarlinExperts" in checks["kernel for W4A16"].value


def test_parallelism_among_the_extra_arguments_is_refused(tmp_path: Path) -> None:
    for flag in ("--tensor-parallel-size", "-tp", "--tensor_parallel_size=4"):
        with pytest.raises(FlowError, match=r"set engine\.tensor_parallel"):
            Flow.open(PROFILE, {"engine.extra_arguments": [flag, "4"]}, tmp_path)
    with pytest.raises(FlowError, match="are for GPUs"):
        Flow.open("ci", {"engine.tensor_parallel": 2}, tmp_path)


def test_doctor_shows_the_warning_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = ROOMY.model_copy(update={"gpus": (A100,), "gpu_problem": None})
    monkeypatch.setattr(machine_module, "inspect_machine", lambda _: machine)
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path))
    done = CliRunner().invoke(cli.main, ["doctor", "--profile", PROFILE])
    assert done.exit_code == 0, done.output
    assert "WARNING  kernel for FP8_DYNAMIC" in " ".join(done.output.split("\n"))


def test_plan_says_where_each_scheme_has_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path))
    said = CliRunner().invoke(cli.main, ["plan", "--profile", PROFILE]).output
    assert (
        "FP8_DYNAMIC: absent on compute capability 7.5; weights only on compute capability 8.0, "
        "8.6; as" in said
    )
    assert (
        "W4A16: absent on AVX2"
        in CliRunner().invoke(cli.main, ["plan", "--profile", "cpu-smollm2"]).output
    )


@pytest.mark.parametrize(
    ("profile", "machine", "config", "check_name", "outcome"),
    [
        (
            "cpu-smollm2",
            ROOMY.model_copy(update={"cpu_features": ("avx2",)}),
            {"quant_method": "gptq", "bits": 4, "sym": True},
            "CPU for INT4",
            "does not fit",
        ),
        (
            PROFILE,
            ROOMY.model_copy(update={"gpus": (B200,)}),
            {"quant_method": "fp8", "activation_scheme": "dynamic"},
            "kernel for FP8_DYNAMIC",
            "ok",
        ),
        (
            PROFILE,
            ROOMY.model_copy(update={"gpus": (A100,)}),
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {}}}},
            "kernel for UNKNOWN",
            "warning",
        ),
    ],
)
def test_a_ready_made_checkpoint_that_is_here_is_held_against_the_table_too(
    tmp_path: Path,
    profile: str,
    machine: Machine,
    config: dict[str, Any],
    check_name: str,
    outcome: str,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    ready = [{"name": "theirs", "source": str(tmp_path)}]
    flow = Flow.open(profile, {"candidates": ready}, tmp_path / "artifacts")
    checks = {item.name: item for item in check(flow, machine)}
    assert checks[check_name].outcome == outcome and "theirs" in checks[check_name].needed
