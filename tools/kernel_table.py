"""Asks the installed vLLM which kernel it uses for each scheme on each device; writes a table.

    python tools/kernel_table.py src/model_serve_flow/system/kernel_table.json

Run it with the Python of the `serve` environment.

vLLM decides in Python, so its CPU build also makes the decisions for GPUs. A child process
(kernel_survey.py) pretends to be on one GPU after the other, builds one layer in each scheme, and
catches the kernel that vLLM picks.

Some answers come from compiled code, which the CPU build does not have. `compiled_answers` gives
them, for CUDA 13, after vLLM's csrc (quantization/w8a8/cutlass/scaled_mm_entry.cu,
quantization/fp4/nvfp4_scaled_mm_entry.cu).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1")
DTYPES = ("bfloat16", "float16")
PROCESSORS = {"other": False, "amx": True}
PLATFORM = "KERNEL_TABLE_PLATFORM"  # variable that names the platform to pretend
ROWS, COLUMNS = 1024, 1024  # of the layer: every kernel can have this shape

_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}
_GROUP = {"strategy": "group", "symmetric": True, "group_size": 128}
_CHANNEL = {"strategy": "channel", "symmetric": True}
_TENSOR = {"strategy": "tensor", "symmetric": True, "dynamic": False}
_NVFP4 = {
    **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
    **{"symmetric": True, "scale_dtype": "torch.float8_e4m3fn"},
}
_MX = {
    "type": "float",
    "strategy": "group",
    "group_size": 32,
    "symmetric": True,
    "scale_dtype": "torch.uint8",
}
_FP8 = {"num_bits": 8, "type": "float"}
_INT8 = {"num_bits": 8, "type": "int"}
_INT4 = {"num_bits": 4, "type": "int"}
# Name -> (format, weights, input activations), as llm-compressor writes them.
SCHEMES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "W8A8": ("int-quantized", {**_INT8, **_CHANNEL}, {**_INT8, **_TOKEN}),
    "W4A16": ("pack-quantized", {**_INT4, **_GROUP}, None),
    "W4A16_ASYM": ("pack-quantized", {**_INT4, **_GROUP, "symmetric": False}, None),
    "W8A16": ("pack-quantized", {**_INT8, **_CHANNEL}, None),
    "FP8_DYNAMIC": ("float-quantized", {**_FP8, **_CHANNEL}, {**_FP8, **_TOKEN}),
    "FP8": ("float-quantized", {**_FP8, **_TENSOR}, {**_FP8, **_TENSOR}),
    "FP8_BLOCK": (
        "float-quantized",
        {**_FP8, "strategy": "block", "symmetric": True, "block_structure": [128, 128]},
        {**_FP8, "strategy": "group", "symmetric": True, "dynamic": True, "group_size": 128},
    ),
    "FP8_A16": ("naive-quantized", {**_FP8, **_CHANNEL}, None),
    "W4A8": ("int-quantized", {**_INT4, **_GROUP}, {**_INT8, **_TOKEN}),
    "W4AFP8": ("pack-quantized", {**_INT4, **_GROUP}, {**_FP8, **_TOKEN}),
    "NVFP4": ("nvfp4-pack-quantized", _NVFP4, {**_NVFP4, "dynamic": "local"}),
    "NVFP4A16": ("nvfp4-pack-quantized", _NVFP4, None),
    "MXFP4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, **_MX},
        {"num_bits": 4, **_MX, "dynamic": True},
    ),
    "MXFP4A16": ("mxfp4-pack-quantized", {"num_bits": 4, **_MX}, None),
    "MXFP8": ("mxfp8-quantized", {"num_bits": 8, **_MX}, {"num_bits": 8, **_MX, "dynamic": True}),
}


def main() -> None:
    """Writes the table to the path given, or prints it."""
    table = build()
    text = render(table)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def build() -> dict[str, Any]:
    """Builds the table.

    Returns:
        {"vllm": version, "gpu": {capability: {dtype: {scheme: ...}}}, "cpu": {processor: ...}}.
    """
    plain, toolkit, cpu = (_child(platform) for platform in ("gpu", "gpu with toolkit", "cpu"))
    gpu = {
        capability: _joined(plain["gpu"][capability], toolkit["gpu"][capability])
        for capability in CAPABILITIES
    }
    return {"vllm": plain["vllm"], "gpu": gpu, "cpu": cpu["cpu"]}


def render(table: dict[str, Any]) -> str:
    """Writes the table as JSON with one line for each scheme, so that a diff is readable."""
    parts = [f' "vllm": {json.dumps(table["vllm"])}']
    parts += [
        f' "gpu": {{\n{_nested(table["gpu"], 3)}\n }}',
        f' "cpu": {{\n{_nested(table["cpu"], 2)}\n }}',
    ]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _nested(level: dict[str, Any], depth: int, indent: int = 2) -> str:
    pad = " " * indent
    if depth == 1:
        return ",\n".join(
            f"{pad}{json.dumps(key)}: {json.dumps(row)}" for key, row in level.items()
        )
    inner = {key: _nested(row, depth - 1, indent + 1) for key, row in level.items()}
    return ",\n".join(f"{pad}{json.dumps(key)}: {{\n{text}\n{pad}}}" for key, text in inner.items())


def _joined(plain: dict[str, Any], toolkit: dict[str, Any]) -> dict[str, Any]:
    """Joins the answers with and without a CUDA toolkit, which FlashInfer needs.

    A row has both answers where the toolkit changes the kernel.
    """
    joined: dict[str, Any] = {}
    for dtype, schemes in plain.items():
        joined[dtype] = {}
        for scheme, row in schemes.items():
            other = toolkit[dtype][scheme]
            joined[dtype][scheme] = row if other == row else {**row, "with_toolkit": other}
    return joined


def _child(platform: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        PLATFORM: platform,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(Path(__file__).with_name("kernel_survey.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
