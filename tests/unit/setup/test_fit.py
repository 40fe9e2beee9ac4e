"""The machine as seen, the estimate, and checks that stop a profile that does not fit."""

import os
import re
import socket
from pathlib import Path

import psutil
import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.serve.kernels import int8_saturates
from model_serve_flow.setup import disk
from model_serve_flow.setup.fit import check, compress_advice, estimate, require
from model_serve_flow.system import hardware as module
from model_serve_flow.system.gpus import Gpu
from model_serve_flow.system.hardware import Machine, free_port, inspect_machine
from model_serve_flow.system.sizes import GIB

ROOMY = Machine(
    os="Linux", kernel="6", python="3.11", architecture="x86_64", cpu="a CPU", cores=8,
    cpu_features=("avx2", "avx512f"), memory_bytes=128 * GIB, memory_available_bytes=100 * GIB,
    disk_free_bytes=500 * GIB, gpus=(), gpu_problem="none here",
)  # fmt: skip
L40S = Gpu(name="NVIDIA L40S", memory_bytes=46068 << 20, driver="580.1", compute_capability="8.9")


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """All environments are built; test_disk.py is about those that are not."""
    monkeypatch.setattr(disk, "missing_bytes", lambda device: 0)


def open_flow(tmp_path: Path, profile: str = "cpu-smollm2", **overrides: object) -> Flow:
    return Flow.open(
        profile, {key.replace("__", "."): value for key, value in overrides.items()}, tmp_path
    )


def failures(flow: Flow, machine: Machine) -> set[str]:
    return {item.name for item in check(flow, machine) if not item.ok}


def test_this_machine_is_within_its_hardware(tmp_path: Path) -> None:
    here = inspect_machine(tmp_path / "not" / "made" / "yet")
    assert 1 <= here.cores <= os.cpu_count()
    assert 0 < here.memory_available_bytes <= here.memory_bytes <= psutil.virtual_memory().total
    assert here.disk_free_bytes > 0
    assert bool(here.gpus) != bool(here.gpu_problem)


def test_only_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    with pytest.raises(FlowError, match="needs Linux"):
        inspect_machine()


def test_container_limits_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cgroup_folders", lambda cgroups: [cgroups])
    (tmp_path / "memory.max").write_text(str(GIB))
    (tmp_path / "memory.current").write_text(str(GIB // 2))
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {GIB // 4}\n")
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert module._memory(tmp_path) == (GIB, GIB - GIB // 4)
    assert module.usable_cores(tmp_path) == 1


def test_limits_of_version_1_cgroups_count(tmp_path: Path) -> None:
    cpu, memory = tmp_path / "cpu,cpuacct", tmp_path / "memory"
    for folder in (cpu, memory):
        folder.mkdir()
    (cpu / "cpu.cfs_quota_us").write_text("100000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (memory / "memory.limit_in_bytes").write_text(str(GIB))
    (memory / "memory.usage_in_bytes").write_text(str(GIB // 2))
    (memory / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {GIB // 4}\n")
    assert module.usable_cores(tmp_path) == 1
    assert module._memory(tmp_path) == (GIB, GIB - GIB // 4)


def test_version_1_cgroups_without_limits(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert module.usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_no_container_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max")
    (tmp_path / "cpu.max").write_text("max 100000")
    assert module._memory(tmp_path)[0] == psutil.virtual_memory().total
    assert module.usable_cores(tmp_path) == len(os.sched_getaffinity(0))


def test_estimate_of_the_small_profile_is_near_what_was_measured(tmp_path: Path) -> None:
    need = estimate(open_flow(tmp_path))
    assert need.weights_bytes == pytest.approx(269e6, rel=0.01)
    assert need.kv_cache_bytes == GIB
    # both candidates' servers start together
    assert need.serve_bytes == 2 * (need.weights_bytes + GIB + 2 * GIB)
    one = estimate(Flow.open("cpu-smollm2", {"engine.start_together": False}, tmp_path))
    assert one.serve_bytes == need.serve_bytes / 2
    assert need.disk_bytes > (269 + 160 + 112 + 98) * 1e6


def test_kv_cache_of_llama_8b_is_128_kib_a_token(tmp_path: Path) -> None:
    need = estimate(open_flow(tmp_path, "gpu-llama-3.1-8b"))
    assert need.kv_cache_bytes / ((1024 + 512) * 100) == pytest.approx(131072, rel=0.05)


def test_gpu_profile_without_gpu_is_refused_in_clear_words(tmp_path: Path) -> None:
    checks = check(open_flow(tmp_path, "gpu-llama-3.1-8b"), ROOMY)
    with pytest.raises(
        FlowError, match="GPU: none \\(none here\\); needed: an NVIDIA GPU"
    ) as raised:
        require(checks)
    assert "cpu-smollm2" in str(raised.value)


def test_the_reference_gpu_fits_and_a_third_of_it_does_not(tmp_path: Path) -> None:
    flow = open_flow(tmp_path, "gpu-llama-3.1-8b")
    assert failures(flow, ROOMY.model_copy(update={"gpus": (L40S,)})) == set()
    third = L40S.model_copy(update={"memory_bytes": L40S.memory_bytes // 3})
    assert failures(flow, ROOMY.model_copy(update={"gpus": (third,)})) == {"GPU memory to serve"}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"memory_available_bytes": 3 * GIB}, {"memory to serve"}),
        ({"memory_available_bytes": GIB}, {"memory to serve", "memory to compress"}),
        ({"disk_free_bytes": GIB // 2}, {"disk"}),
        ({"cpu_features": ()}, {"CPU", "CPU for INT4"}),
        ({"cpu_features": ("avx2",)}, {"CPU for INT4"}),
        ({"cpu_features": (), "architecture": "aarch64"}, set()),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, object], failed: set[str]
) -> None:
    assert failures(open_flow(tmp_path), ROOMY.model_copy(update=change)) == failed


def test_without_avx_512_the_message_names_the_candidates_and_the_profile_that_fits(
    tmp_path: Path,
) -> None:
    plain = ROOMY.model_copy(update={"cpu_features": ("avx2",)})
    with pytest.raises(FlowError, match=r"without avx512f; needed: .*w4a16-int4.*cpu-smollm2-avx2"):
        require(check(open_flow(tmp_path), plain))
    assert failures(open_flow(tmp_path, "cpu-smollm2-avx2"), plain) == set()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH with nothing on it; returns its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.mark.parametrize(
    ("profile", "program", "variable"), [("ci", "g++", "CXX"), ("gpu-llama-3.1-8b", "gcc", "CC")]
)
def test_a_compiler_is_needed_only_where_vllm_compiles(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_compiler: Path,
    profile: str,
    program: str,
    variable: str,
) -> None:
    machine = ROOMY.model_copy(update={"gpus": (L40S,)})
    compiles, eager = (
        open_flow(tmp_path, profile, engine__enforce_eager=value) for value in (False, True)
    )
    assert failures(eager, machine) == set()
    with pytest.raises(
        FlowError, match=rf"compiler: no {re.escape(program)}.*engine.enforce_eager"
    ):
        require(check(compiles, machine))
    for name in (program, "mine"):
        (no_compiler / name).touch(mode=0o755)
    assert failures(compiles, machine) == set()
    monkeypatch.setenv(variable, "/nonexistent")
    assert failures(compiles, machine) == {"compiler"}
    monkeypatch.setenv(variable, "mine")
    assert failures(compiles, machine) == set()


@pytest.mark.parametrize(
    ("architecture", "features", "saturates"),
    [("x86_64", ["avx2"], True), ("x86_64", ["avx512f"], True), ("x86_64", ["avx_vnni"], False),
     ("x86_64", ["avx512f", "avx512_vnni"], False), ("aarch64", [], False)],
)  # fmt: skip
def test_int8_saturates_on_x86_without_vnni(
    architecture: str, features: list[str], saturates: bool
) -> None:
    assert int8_saturates(architecture, features) is saturates


def test_served_in_float32_the_weights_take_twice_the_memory(tmp_path: Path) -> None:
    narrow, wide = (
        estimate(open_flow(tmp_path, engine__dtype=name)) for name in ("bfloat16", "float32")
    )
    # two candidates start together
    assert wide.serve_bytes - narrow.serve_bytes == 2 * narrow.weights_bytes


def test_the_kv_cache_of_a_load_is_twice_as_wide_in_float32(tmp_path: Path) -> None:
    profile = "gpu-llama-3.1-8b"
    narrow, wide = (
        estimate(open_flow(tmp_path, profile, engine__dtype=name))
        for name in ("bfloat16", "float32")
    )
    assert wide.kv_cache_bytes == 2 * narrow.kv_cache_bytes


def test_models_already_there_need_no_disk_again(tmp_path: Path) -> None:
    flow = open_flow(tmp_path)
    tight = ROOMY.model_copy(update={"disk_free_bytes": estimate(flow).disk_bytes - 1000})
    assert failures(flow, tight) == {"disk"}
    flow.workspace.model("base").mkdir(parents=True)
    (flow.workspace.model("base") / "model.safetensors").write_bytes(bytes(2000))
    assert failures(flow, tight) == set()


def test_require_lists_every_failure(tmp_path: Path) -> None:
    poor = ROOMY.model_copy(update={"memory_available_bytes": GIB, "disk_free_bytes": 0})
    with pytest.raises(FlowError) as raised:
        require(check(open_flow(tmp_path), poor))
    for part in (
        "memory to serve: 1.0 GiB",
        "memory to compress: 1.0 GiB",
        "disk: 0.0 GiB",
        "MODEL_SERVE_FLOW_ARTIFACTS",
    ):
        assert part in str(raised.value)


def test_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


LONG = {"calibration.samples": 512, "calibration.max_sequence_length": 8192}


def test_calibration_needs_memory_for_every_mask(tmp_path: Path) -> None:
    need = estimate(Flow.open("gpu-llama-3.1-8b", LONG, tmp_path))
    masks, activations = 512 * 8192 * 8192 * 2, 2 * 512 * 8192 * 4096 * 2
    assert need.calibration_bytes == pytest.approx(masks + activations, rel=0.05)
    assert need.compress_bytes - need.calibration_bytes == 2 * need.weights_bytes + 2 * GIB
    longer = estimate(
        Flow.open("gpu-llama-3.1-8b", LONG | {"calibration.max_sequence_length": 16384}, tmp_path)
    )
    assert longer.calibration_bytes > 2.5 * need.calibration_bytes


def test_recipes_without_calibration_need_no_memory_for_it(tmp_path: Path) -> None:
    flow = Flow.open(
        "cpu-smollm2",
        {"candidates": [{"name": "a", "recipe": {"scheme": "FP8_DYNAMIC"}}]},
        tmp_path,
    )
    assert estimate(flow).calibration_bytes == 0
    assert "calibration.samples" not in compress_advice(flow, 0)


def test_what_does_not_fit_names_the_largest_calibration_set_that_does(tmp_path: Path) -> None:
    flow = Flow.open("gpu-llama-3.1-8b", LONG, tmp_path)
    machine = ROOMY.model_copy(update={"gpus": (L40S,), "memory_available_bytes": 60 * GIB})
    advice = next(
        item.advice
        for item in check(flow, machine)
        if item.name == "memory to compress" and not item.ok
    )
    fewer = int(re.search(r"calibration.samples from 512 to (\d+) or less", advice)[1])
    fitting = Flow.open("gpu-llama-3.1-8b", LONG | {"calibration.samples": fewer}, tmp_path)
    assert "memory to compress" not in failures(fitting, machine)
    more = Flow.open("gpu-llama-3.1-8b", LONG | {"calibration.samples": fewer + 5}, tmp_path)
    assert "memory to compress" in failures(more, machine)
    assert "without any calibration text it would still need" in compress_advice(flow, 20 * GIB)
