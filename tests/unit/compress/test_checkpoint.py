import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import tiny_config
from transformers import AutoConfig, LlamaConfig

from model_serve_flow.compress import compression
from model_serve_flow.compress.checkpoint import inspect_checkpoint
from model_serve_flow.compress.compression import adopt
from model_serve_flow.compress.recipes import config_groups, linear_layers
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.measure.accuracy import measure_accuracy
from model_serve_flow.setup.tokenizer import verify_same_tokenizer
from model_serve_flow.system.hardware import inspect_machine
from model_serve_flow.system.scheme_names import scheme_name

W4 = Recipe(scheme="W4A16", algorithm="gptq", group_size=32)
LAYER = "model.layers.0.self_attn.q_proj"


def save(folder: Path, config: LlamaConfig, tensors, quantization=None) -> Path:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForCausalLM"]
    }
    if quantization:
        document["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(document))
    save_file(tensors, folder / "model.safetensors")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


def quantization_config(recipe: Recipe):
    return {
        "quant_method": "compressed-tensors",
        "config_groups": config_groups(recipe),
        "ignore": list(recipe.ignore),
    }


def w4_tensors(config: LlamaConfig, group_size: int = 32):
    import torch

    tensors = {
        "model.embed_tokens.weight": torch.randn(config.vocab_size, config.hidden_size).bfloat16()
    }
    for name, (rows, columns) in linear_layers(config).items():
        if name != "lm_head":
            tensors[f"{name}.weight_packed"] = torch.ones(rows, columns // 8, dtype=torch.int32)
            tensors[f"{name}.weight_scale"] = torch.full(
                (rows, columns // group_size), 0.1
            ).bfloat16()
            tensors[f"{name}.weight_shape"] = torch.tensor([rows, columns])
    return tensors


@pytest.fixture
def made(tmp_path):
    """Saves a W4A16 checkpoint, sound but for what `change` does to its tensors or
    configuration.
    """

    def build(change=lambda tensors, quantization: None) -> Path:
        tensors, quantization = w4_tensors(tiny_config()), quantization_config(W4)
        change(tensors, quantization)
        return save(tmp_path / "candidate", tiny_config(), tensors, quantization)

    return build


def test_a_sound_checkpoint_is_read_and_verified(made):
    checkpoint = verify_checkpoint(made(), W4)
    assert checkpoint.scheme == "W4A16"
    assert len(checkpoint.quantized_layers) == 14
    assert checkpoint.ignored_layers == ("lm_head",)
    assert checkpoint.bits_per_weight == 4.5  # 4 bits, and 16 bits of scale per 32 weights
    assert checkpoint.size_bytes == (made() / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("value", "problem"),
    [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.0, "is zero")],
)
def test_one_corrupt_scale_is_found(made, value, problem):
    def corrupt(tensors, quantization):
        tensors[f"{LAYER}.weight_scale"][3, 1] = value

    with pytest.raises(FlowError, match=rf"{LAYER}.weight_scale.*{problem}"):
        verify_checkpoint(made(corrupt))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bits", 8),
        ("group_size", 64),
        ("symmetric", False),
        ("strategy", "channel"),
        ("type", "float"),
    ],
)
def test_configuration_that_does_not_say_what_the_recipe_says(made, field, value):
    def lie(tensors, quantization):
        quantization["config_groups"]["group_0"]["weights"][field] = value

    with pytest.raises(FlowError, match=f"weights.{field} is {value!r}"):
        verify_checkpoint(made(lie), W4)


def test_quantised_activations_that_the_recipe_does_not_have(made):
    def lie(tensors, quantization):
        quantization["config_groups"]["group_0"]["input_activations"] = {
            "num_bits": 8,
            "type": "int",
        }

    with pytest.raises(FlowError, match="input_activations"):
        verify_checkpoint(made(lie), W4)


def test_configuration_that_does_not_describe_its_tensors(made):
    def regroup(tensors, quantization):
        import torch

        tensors[f"{LAYER}.weight_scale"] = torch.full((64, 1), 0.1)

    with pytest.raises(FlowError, match=rf"{LAYER}.weight_scale is .*\(64, 1\)"):
        verify_checkpoint(made(regroup), W4)


def test_a_layer_without_quantised_weights_is_missed(made):
    def drop(tensors, quantization):
        for part in ("weight_packed", "weight_scale", "weight_shape"):
            del tensors[f"{LAYER}.{part}"]

    with pytest.raises(
        FlowError,
        match=f"1 layers that the recipe quantises are not quantised, for instance {LAYER}",
    ):
        verify_checkpoint(made(drop), W4)


def test_ignore_list_must_name_the_layers_left(made):
    with pytest.raises(
        FlowError,
        match=r"lm_head is not quantised, but quantization_config\.ignore does not name it",
    ):
        verify_checkpoint(made(lambda tensors, quantization: quantization.update(ignore=[])), W4)


def test_ignore_list_must_not_name_quantised_layers(made):
    with pytest.raises(FlowError, match=r"is quantised, but quantization_config\.ignore names it"):
        verify_checkpoint(
            made(
                lambda tensors, quantization: quantization.update(ignore=["lm_head", "re:.*q_proj"])
            )
        )


def test_missing_weights(made):
    folder = made()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FlowError, match=r"no \*\.safetensors weights"):
        inspect_checkpoint(folder)


def test_an_uncompressed_model_is_not_a_candidate(tmp_path):
    import torch

    config = tiny_config()
    tensors = {"model.embed_tokens.weight": torch.zeros(128, 64)}
    tensors |= {
        f"{name}.weight": torch.zeros(shape)
        for name, shape in linear_layers(config).items()
        if name != "lm_head"
    }
    with pytest.raises(FlowError, match="no quantization_config"):
        inspect_checkpoint(save(tmp_path / "base", config, tensors))
    with pytest.raises(FlowError, match="no quantised layer"):
        inspect_checkpoint(save(tmp_path / "lying", config, tensors, quantization_config(W4)))


def test_a_gptq_checkpoint_of_another_tool(tmp_path):
    import torch

    config, tensors = tiny_config(), {"model.embed_tokens.weight": torch.zeros(128, 64)}
    for name, (rows, columns) in linear_layers(config).items():
        if name != "lm_head":
            tensors[f"{name}.qweight"] = torch.ones(columns // 8, rows, dtype=torch.int32)
            tensors[f"{name}.qzeros"] = torch.ones(columns // 32, rows // 8, dtype=torch.int32)
            tensors[f"{name}.scales"] = torch.full((columns // 32, rows), 0.1).half()
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}
    checkpoint = verify_checkpoint(save(tmp_path / "gptq", config, tensors, gptq))
    assert (checkpoint.quant_method, checkpoint.scheme) == ("gptq", "W4A16")
    assert checkpoint.bits_per_weight == 4 + 16 / 32 + 4 / 32
    assert len(checkpoint.quantized_layers) == 14
    half = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    with pytest.raises(
        FlowError,
        match=r"no weights of 7 of the model's 15 linear layers, such as model\.layers\.1",
    ):
        verify_checkpoint(save(tmp_path / "half", config, half, gptq))


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "W4A16_ASYM", "FP8_DYNAMIC"])
def test_scheme_name_is_read_back_from_its_configuration(scheme):
    assert scheme_name(quantization_config(Recipe(scheme=scheme))) == scheme


def test_awq_with_zero_points_is_asymmetric():
    assert scheme_name({"quant_method": "awq", "bits": 4, "zero_point": True}) == "W4A16_ASYM"


def test_saved_configuration_survives_transformers(made):
    assert (
        AutoConfig.from_pretrained(made()).quantization_config["quant_method"]
        == "compressed-tensors"
    )


# The tokenizer of a candidate

CHAT = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"


def save_tokenizer(
    folder: Path, template=CHAT, merges=(("a", "b"),), lowercase=False, swapped=False, added=()
) -> Path:
    """A tiny byte-pair tokenizer with a chat template, or one that differs from it in one thing."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = list("abcdefghijklmnopqrstuvwxyzABC<>")
    if swapped:
        letters[0], letters[1] = letters[1], letters[0]
    vocabulary = {token: index for index, token in enumerate([*letters, "ab", "bc", "[UNK]"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.add_tokens([AddedToken(token, normalized=False) for token in added])
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


def test_a_tokenizer_written_in_another_layout_is_the_same(tmp_path):
    base, candidate = save_tokenizer(tmp_path / "base"), save_tokenizer(tmp_path / "candidate")
    path = candidate / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    settings = json.loads((candidate / "tokenizer_config.json").read_text())
    (candidate / "chat_template.jinja").unlink()
    (candidate / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))
    verify_same_tokenizer(base, candidate)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"template": CHAT.replace("<", "[")}, "chat template"),
        ({"template": None}, "chat template"),
        ({"swapped": True}, "vocabulary"),
        ({"added": ["<tool>"]}, "vocabulary"),
        ({"merges": [("b", "c")]}, "list of merges"),
        ({"lowercase": True}, "tokenisation of a sample text"),
    ],
)
def test_a_tokenizer_that_reads_differently_is_found(tmp_path, change, what):
    base, candidate = (
        save_tokenizer(tmp_path / "base"),
        save_tokenizer(tmp_path / "candidate", **change),
    )
    with pytest.raises(FlowError, match=f"its {what} differs"):
        verify_same_tokenizer(base, candidate)


def test_an_added_token_that_became_special_is_found(tmp_path):
    base, candidate = (
        save_tokenizer(tmp_path / name, added=["<tool>"]) for name in ("base", "candidate")
    )
    path = candidate / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"][-1]["special"] = True
    path.write_text(json.dumps(document))
    settings = json.loads((candidate / "tokenizer_config.json").read_text())
    for token in settings.get("added_tokens_decoder", {}).values():
        token["special"] = True
    (candidate / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(FlowError, match="its set of added tokens differs"):
        verify_same_tokenizer(base, candidate)


def test_a_tokenizer_that_is_not_there_is_an_error_of_the_flow(tmp_path):
    (tmp_path / "candidate").mkdir()
    with pytest.raises(FlowError, match="cannot be loaded"):
        verify_same_tokenizer(save_tokenizer(tmp_path / "base"), tmp_path / "candidate")


def test_a_4_bit_checkpoint_is_not_adopted_where_the_engine_cannot_serve_it(
    made, tmp_path, monkeypatch
):
    plain = inspect_machine().model_copy(
        update={"architecture": "x86_64", "cpu_features": ("avx2",)}
    )
    monkeypatch.setattr(compression, "inspect_machine", lambda: plain)
    flow = Flow.open(
        "ci",
        {"candidates": [{"name": "ready-made", "source": str(made())}]},
        tmp_path / "artifacts",
    )
    save_tokenizer(flow.workspace.model("base"))
    save_tokenizer(made())
    with pytest.raises(FlowError, match=r"without avx512f; needed: .*ready-made"):
        adopt(flow, "ready-made")


def test_a_candidate_with_another_chat_template_is_neither_adopted_nor_measured(made, tmp_path):
    candidates = [{"name": "ready-made", "source": str(made())}]
    flow = Flow.open("ci", {"candidates": candidates}, tmp_path / "artifacts")
    save_tokenizer(flow.workspace.model("base"))
    save_tokenizer(made(), template=CHAT.replace("<", "["))
    with pytest.raises(FlowError, match="its chat template differs"):
        adopt(flow, "ready-made")
    # nothing else of it may be asked for
    server = SimpleNamespace(model_name="ready-made", folder=made())
    save_tokenizer(server.folder, template=None)
    with pytest.raises(FlowError, match="its chat template differs"):
        measure_accuracy(flow, server)


# Checkpoints of other tools


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao"])
def test_a_format_that_cannot_be_read_is_refused_by_its_name(tmp_path, method):
    import torch

    tensors = {"model.layers.0.mlp.down_proj.weight": torch.ones(8, 8)}
    with pytest.raises(
        FlowError, match=f"a checkpoint of {method}, whose tensors this flow cannot read"
    ):
        verify_checkpoint(save(tmp_path / method, tiny_config(), tensors, {"quant_method": method}))


def test_a_checkpoint_of_an_older_modelopt_says_it_in_a_file_of_its_own(tmp_path):
    import torch

    config, tensors = tiny_config(), {"model.embed_tokens.weight": torch.zeros(128, 64)}
    for name, shape in linear_layers(config).items():
        quantised = name != "lm_head"
        tensors[f"{name}.weight"] = torch.ones(shape).to(
            torch.float8_e4m3fn if quantised else torch.bfloat16
        )
        if quantised:
            tensors[f"{name}.weight_scale"] = torch.tensor(0.5)
    folder = save(tmp_path / "modelopt", config, tensors, {"quant_method": "gone"})
    settings = json.loads((folder / "config.json").read_text())
    del settings["quantization_config"]
    (folder / "config.json").write_text(json.dumps(settings))
    written = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(written))
    checkpoint = verify_checkpoint(folder)
    assert (checkpoint.quant_method, checkpoint.scheme) == ("modelopt", "FP8")
