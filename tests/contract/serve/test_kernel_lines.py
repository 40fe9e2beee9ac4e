"""The lines by which a run proves its kernels are in the installed vLLM, word for word."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from model_serve_flow.serve.kernels import _WEIGHTS_ONLY, LAYERS, WEIGHTS_ONLY

SOURCE = Path(find_spec("vllm").origin).parent / "model_executor"
FOLDERS = ("kernels/linear", "layers/quantization/compressed_tensors", "layers/quantization/utils")


@pytest.fixture(scope="module")
def text():
    files = [path for folder in FOLDERS for path in (SOURCE / folder).rglob("*.py")]
    files += (SOURCE / "layers" / "fused_moe" / "oracle").glob("*.py")
    joined = "".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*f?"', "", joined)  # literals that go over several lines


@pytest.mark.parametrize("layer", sorted({layer for layers in LAYERS.values() for layer in layers}))
def test_vllm_writes_such_a_line(text, layer):
    forms = (f"class {layer}(", f"Using %s for {layer}", f"{layer} backend", f"for {layer}")
    assert any(form in text for form in forms)


def test_vllm_says_when_marlin_unpacks_fp8(text):
    assert _WEIGHTS_ONLY.search(text)
    assert f"class {WEIGHTS_ONLY.rpartition(' for ')[2]}(" in text


@pytest.mark.parametrize(
    "line", ['"Selected %s for %s"', '"Using %s for NVFP4 GEMM"', '"Using %s for MXFP4 GEMM"']
)
def test_the_words_around_a_kernel(text, line):
    assert line in text
