"""`model-serve-flow new-profile`: what it writes for which model and device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from support.nvidia_smi import line, put_on_path

from model_serve_flow import cli
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.system import named_devices

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
QWEN3_MOE = LLAMA_8B | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
}  # fmt: skip
GPT_NEOX = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "torch_dtype": "float16",
    "hidden_size": 64, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_devices, "describe_cpu", lambda _: ("a CPU", ("avx2", "avx512f")))


def model(folder: Path, settings: dict[str, Any], *, chat: bool = False) -> Path:
    place = folder / "My-Model_7B"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(settings))
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"} if chat else {}))
    return place


def command(source: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["new-profile", str(source), *arguments])


def written(tmp_path: Path, source: Path, *arguments: str) -> tuple[FlowConfig, str]:
    """The profile, and its text in one line."""
    output = tmp_path / "new.yaml"
    done = command(source, "--output", str(output), *arguments)
    assert done.exit_code == 0, done.output
    assert f"model-serve-flow plan --profile {output}" in done.output
    text = " ".join(part.lstrip("# ") for part in output.read_text().splitlines())
    return load_profile(str(output)), text


def schemes(config: FlowConfig) -> list[str]:
    return [candidate.recipe.scheme for candidate in config.candidates if candidate.recipe]


def test_on_a_cpu_it_extends_the_cpu_profile_with_the_model_in_place_of_the_wheel(
    tmp_path: Path,
) -> None:
    source = model(tmp_path, LLAMA_8B, chat=True)
    config, text = written(tmp_path, source, "--device", "cpu")
    assert config.device == "cpu" and config.name == "cpu-my-model-7b"
    assert config.model.source == str(source) and config.model.wheel is None
    assert config.model.parameters == 8_030_261_248 and config.model.note == ""
    assert {"W8A8", "W4A16"} <= set(schemes(config))
    assert not config.accuracy.apply_chat_template and not config.engine.start_together
    assert "CPUInt8ScaledMMLinearKernel serves it here" in text


@pytest.mark.parametrize(
    ("settings", "device", "parallel", "dtype", "taken", "left"),
    [
        (LLAMA_8B, "h100", 1, "bfloat16", ["W8A8", "FP8_DYNAMIC", "W4A16"], ""),
        (LLAMA_8B, "a100", 1, "bfloat16", ["W8A8", "W4A16"], "FP8_DYNAMIC is left out: weights"),
        (
            LLAMA_8B,
            "b200",
            1,
            "bfloat16",
            ["FP8_DYNAMIC", "W4A16", "NVFP4"],
            "W8A8 is left out: vLLM has",
        ),
        (LLAMA_8B, "t4", 4, "float16", ["W8A8", "W4A16"], "refuses bfloat16 below"),
        (LLAMA_70B, "h100", 4, "bfloat16", ["W8A8", "FP8_DYNAMIC", "W4A16"], "4 x NVIDIA H100"),
        (LLAMA_70B, "h200", 2, "bfloat16", ["W8A8", "FP8_DYNAMIC", "W4A16"], "2 x NVIDIA H200"),
        (QWEN3_MOE, "h100", 2, "bfloat16", ["FP8_DYNAMIC"], "128 experts in a layer"),
    ],
)
def test_schemes_dtype_and_number_of_gpus_follow_the_device(
    tmp_path: Path,
    settings: dict[str, Any],
    device: str,
    parallel: int,
    dtype: str,
    taken: list[str],
    left: str,
) -> None:
    config, text = written(tmp_path, model(tmp_path, settings), "--device", device)
    assert (config.engine.tensor_parallel, config.engine.dtype) == (parallel, dtype)
    assert set(taken) <= set(schemes(config)) and left in text
    assert config.engine.max_model_len == 8192 and config.deploy.hourly_price_usd is None


@pytest.mark.parametrize("chat", [True, False])
def test_on_a_gpu_the_chat_template_is_used_if_there_is_one(tmp_path: Path, chat: bool) -> None:
    config, text = written(tmp_path, model(tmp_path, LLAMA_8B, chat=chat), "--device", "l40s")
    assert config.accuracy.apply_chat_template is chat
    assert ("the model has a chat template" in text) is chat


def test_without_a_name_the_gpus_found_here_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put_on_path(tmp_path, monkeypatch, *(line(number) for number in range(2)))
    config, text = written(tmp_path, model(tmp_path, LLAMA_8B))
    assert config.device == "gpu" and config.name == "nvidia-l4-my-model-7b"
    assert config.engine.tensor_parallel == 2 and "the fewest GPUs that hold both" in text
    (tmp_path / "new.yaml").unlink()
    (tmp_path / "My-Model_7B" / "config.json").write_text(json.dumps(LLAMA_70B))
    done = command(tmp_path / "My-Model_7B", "--output", str(tmp_path / "new.yaml"))
    assert done.exit_code == 1 and not (tmp_path / "new.yaml").exists()
    assert "does not fit 2 x NVIDIA L4" in done.output and "GiB" in done.output


def test_where_no_number_of_gpus_holds_the_load_requests_wait(tmp_path: Path) -> None:
    config, text = written(tmp_path, model(tmp_path, LLAMA_8B), "--device", "1xl4")
    assert config.engine.tensor_parallel == 1 and "so requests wait for memory" in text


def test_columns_that_share_a_scale_divide_every_layer_also_among_several_gpus(
    tmp_path: Path,
) -> None:
    narrow = LLAMA_8B | {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    config, _ = written(tmp_path, model(tmp_path, narrow), "--device", "h100")
    sizes = [c.recipe.group_size for c in config.candidates if c.recipe and c.recipe.group_size]
    assert sizes == [64]


def test_weights_are_counted_where_config_json_does_not_tell_and_a_short_context_gets_less_load(
    tmp_path: Path,
) -> None:
    source = model(tmp_path, GPT_NEOX)
    save_file({"a": np.ones((64, 64), np.float16)}, str(source / "model.safetensors"))
    config, text = written(tmp_path, source, "--device", "h100")
    assert config.model.parameters == 4096
    assert config.engine.dtype == "float16" and config.engine.max_model_len == 1024
    assert config.performance.prompt_tokens + config.performance.output_tokens < 1024
    assert "SmoothQuant does not know the layers of 'gpt_neox'" in text


def test_the_written_profile_can_be_planned(tmp_path: Path) -> None:
    written(tmp_path, model(tmp_path, LLAMA_70B), "--device", "4xh100")
    plan = CliRunner().invoke(cli.main, ["plan", "--profile", str(tmp_path / "new.yaml")])
    assert plan.exit_code == 0 and "--tensor-parallel-size 4" in plan.output


def test_nothing_is_overwritten_also_not_at_the_default_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = model(tmp_path, LLAMA_8B)
    monkeypatch.chdir(tmp_path)
    assert command(source, "--device", "h100").exit_code == 0
    place = tmp_path / "h100-my-model-7b.yaml"
    place.write_text("mine")
    for arguments in ((), ("--output", str(place))):
        done = command(source, "--device", "h100", *arguments)
        assert done.exit_code == 1 and "exists already" in done.output
    assert place.read_text() == "mine"


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        (LLAMA_8B, ("--device", "h900"), "Devices: cpu, t4"),
        (LLAMA_8B, ("--device", "9xh100"), "Unknown device"),
        (LLAMA_8B, ("--output", "profile.txt"), "does not end with .yaml"),
        (GPT_NEOX, ("--device", "h100"), "--parameters 7000000000"),
        (LLAMA_70B, ("--device", "2xl4"), "does not fit 2 x NVIDIA L4"),
        (LLAMA_8B | {"architectures": ["BertModel"]}, (), "generates no text"),
        (
            LLAMA_8B | {"quantization_config": {"quant_method": "fp8"}},
            (),
            "is compressed already (FP8_DYNAMIC)",
        ),
    ],
)
def test_errors_say_what_to_do(
    tmp_path: Path, settings: dict[str, Any], arguments: tuple[str, ...], said: str
) -> None:
    done = command(model(tmp_path, settings), *arguments)
    assert done.exit_code == 1 and said in " ".join(done.output.split())


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in command(tmp_path).output
    assert "does not exist" in command(tmp_path / "nothing").output
