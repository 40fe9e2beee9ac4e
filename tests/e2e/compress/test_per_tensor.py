"""A candidate that must not pass: 4 bits, one scale for a whole tensor,
activations smoothed by random tokens.

llm-compressor and vLLM cannot share an environment: the checkpoint is left for tests/e2e/serve,
where it is judged.
"""

import shutil

import pytest
from conftest import ARTIFACTS, PER_TENSOR
from support.profiles import CI

from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.files import read_json, write_json

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "tensor", "symmetric": True}
SAMPLES, TOKENS = 16, 128


@pytest.fixture(scope="module")
def checkpoint():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Flow.open(CI, {}, ARTIFACTS).workspace.model("base")
    assert base.is_dir(), "run the flow first: pytest tests/e2e/notebook"
    shutil.rmtree(PER_TENSOR, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    compress_badly(model, len(tokenizer))
    model.save_pretrained(PER_TENSOR, save_compressed=True)
    tokenizer.save_pretrained(PER_TENSOR)
    scales = one_scale_for_every_channel()
    return PER_TENSOR, scales


def compress_badly(model, vocabulary):
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    noise = torch.randint(
        vocabulary, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(0)
    ).tolist()
    dataset = Dataset.from_dict({"input_ids": noise, "attention_mask": [[1] * TOKENS] * SAMPLES})
    groups = {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}
    recipe = [
        SmoothQuantModifier(smoothing_strength=0.8),
        QuantizationModifier(config_groups=groups, ignore=["lm_head"]),
    ]
    oneshot(
        model=model,
        dataset=dataset,
        recipe=recipe,
        num_calibration_samples=SAMPLES,
        max_seq_length=TOKENS,
    )


def one_scale_for_every_channel():
    """The same weights as vLLM serves them: its 4-bit kernels want a scale per channel,
    so each gets the tensor's.
    """
    from safetensors.torch import load_file, save_file

    path = PER_TENSOR / "model.safetensors"
    tensors = load_file(path)
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("weight_scale")}
    for name, scale in scales.items():
        rows = tensors[name.replace("weight_scale", "weight_packed")].shape[0]
        tensors[name] = scale.reshape(1, 1).repeat(rows, 1)
    save_file(tensors, path, metadata={"format": "pt"})
    config = read_json(PER_TENSOR / "config.json")
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "channel"
    write_json(PER_TENSOR / "config.json", config)
    return scales


def test_a_checkpoint_with_one_scale_per_tensor_is_well_formed(checkpoint):
    folder, scales = checkpoint
    assert len(scales) == 7 * 30 and all(scale.numel() == 1 for scale in scales.values())
    verified = verify_checkpoint(folder)
    assert verified.scheme == "W4A16" and verified.ignored_layers == ("lm_head",)
    assert verified.bits_per_weight < 4.1
