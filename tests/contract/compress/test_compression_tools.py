"""The real llm-compressor and datasets, with a tiny random Llama: recipes,
what they save, calibration data.
"""

import json
import shutil

import pytest

from model_serve_flow.compress.calibration import calibration_dataset
from model_serve_flow.compress.compression import adopt, compress
from model_serve_flow.compress.recipes import SCHEMES, config_groups, recipe_modifiers
from model_serve_flow.compress.verify import verify_checkpoint
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.system import live
from model_serve_flow.system.digests import file_digest

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
RECIPES = {
    "w8a8": {"scheme": "W8A8", "smoothing_strength": 0.8},
    "w8a8-gptq": {"scheme": "W8A8", "algorithm": "gptq"},
    "w4a16": {"scheme": "W4A16", "algorithm": "gptq", "group_size": 32, "observer": "mse"},
    "w4a16-asym": {"scheme": "W4A16_ASYM", "group_size": 32},
    "fp8": {"scheme": "FP8_DYNAMIC"},
    "part": {"scheme": "W8A8", "ignore": ["lm_head", "re:.*down_proj"]},
}


def write_rows(flow: Flow, rows) -> None:
    flow.workspace.data.mkdir(parents=True, exist_ok=True)
    (flow.workspace.data / "calibration.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )


def save_base(folder) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({f"w{i}": i for i in range(127)} | {"<unk>": 127}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="w0")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)


@pytest.fixture
def flow(tmp_path) -> Flow:
    candidates = [{"name": name, "recipe": recipe} for name, recipe in RECIPES.items()]
    flow = Flow.open(
        "ci",
        {"candidates": candidates, "calibration.samples": 4, "calibration.max_sequence_length": 16},
        tmp_path,
    )
    save_base(flow.workspace.model("base"))
    texts = [" ".join(f"w{(7 * i + j) % 120}" for j in range(5 + 8 * i)) for i in range(4)]
    write_rows(flow, [{"messages": [{"role": "user", "content": text}]} for text in texts])
    return flow


@pytest.fixture
def tokenizer(flow):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(flow.workspace.model("base"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_are_those_of_compressed_tensors(scheme):
    from compressed_tensors.quantization import preset_name_to_scheme

    preset = preset_name_to_scheme(scheme, ["Linear"]).model_dump(mode="json")
    ours = config_groups(Recipe(scheme=scheme))["group_0"]
    for part in ("weights", "input_activations"):
        assert (ours.get(part) is None) == (preset[part] is None)
        for field, value in (ours.get(part) or {}).items():
            assert preset[part][field] == value, (part, field)


def test_modifiers_come_in_the_order_in_which_they_act():
    names = [
        type(m).__name__
        for m in recipe_modifiers(Recipe(scheme="W8A8", algorithm="gptq", smoothing_strength=0.5))
    ]
    assert names == ["SmoothQuantModifier", "GPTQModifier"]
    names = [type(m).__name__ for m in recipe_modifiers(Recipe(scheme="W4A16", algorithm="awq"))]
    assert names == ["AWQModifier", "QuantizationModifier"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_checkpoint_that_is_what_it_says(flow, tokenizer, name, monkeypatch):
    from llmcompressor import oneshot

    reports = []
    monkeypatch.setattr(live, "report", lambda what, *share: reports.append((what, *share)))
    dataset, facts = calibration_dataset(flow, tokenizer)

    def quantise(model, recipe):
        oneshot(
            model=model,
            recipe=recipe_modifiers(recipe),
            dataset=dataset,
            num_calibration_samples=len(dataset),
        )

    result = compress(flow, name, quantise, facts)
    assert result == flow.workspace.compression(name)
    assert result.scheme == RECIPES[name]["scheme"]
    assert result.quantized_layers == (12 if name == "part" else 14)
    assert ("model.layers.1.mlp.down_proj" in result.ignored_layers) == (name == "part")
    assert result.seconds > 0 and result.peak_memory_bytes > 1e8
    without_calibration = name in ("w4a16-asym", "fp8", "part")
    assert (result.calibration is None) == without_calibration
    # two layers; one is done when the next is reached
    layers = [2] if without_calibration else [0, 1, 2]
    assert list(dict.fromkeys(reports)) == [
        (f"{name}: llm-compressor", 0, 0),
        *((f"{name}: llm-compressor", done, 2, "layers") for done in layers),
    ]
    assert [
        p.name for p in flow.workspace.model(name).parent.iterdir() if p.name.startswith(".")
    ] == []
    assert (
        tokenizer.chat_template
        == TEMPLATE
        == (flow.workspace.model(name) / "chat_template.jinja").read_text()
    )


def test_a_checkpoint_of_another_recipe_never_takes_the_candidates_place(flow):
    from llmcompressor import oneshot

    other = Recipe(
        scheme="W4A16", group_size=64, observer="mse", ignore=("lm_head", "re:.*down_proj")
    )
    with pytest.raises(FlowError, match=r"weights\.group_size is 64, the recipe says 32"):
        compress(
            flow,
            "w4a16",
            lambda model, recipe: oneshot(model=model, recipe=recipe_modifiers(other)),
        )
    with pytest.raises(FlowError, match="not a quantised checkpoint"):
        compress(flow, "w8a8", lambda model, recipe: None)
    assert [path.name for path in flow.workspace.model("base").parent.iterdir()] == ["base"]


def test_a_corrupt_scale_in_a_real_checkpoint_is_found(flow):
    from llmcompressor import oneshot
    from safetensors.torch import load_file, save_file

    compress(
        flow, "fp8", lambda model, recipe: oneshot(model=model, recipe=recipe_modifiers(recipe))
    )
    path = flow.workspace.model("fp8") / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight_scale"][5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FlowError, match=r"up_proj\.weight_scale is not finite"):
        verify_checkpoint(path.parent, flow.config.candidate("fp8").recipe)


def test_a_ready_made_checkpoint_is_taken_over_and_verified(flow, tmp_path):
    from llmcompressor import oneshot

    made = compress(
        flow, "fp8", lambda model, recipe: oneshot(model=model, recipe=recipe_modifiers(recipe))
    )
    sources = {"ready": flow.workspace.model("fp8"), "plain": flow.workspace.model("base")}
    candidates = [{"name": name, "source": str(folder)} for name, folder in sources.items()]
    other = Flow.open("ci", {"candidates": candidates}, tmp_path / "other")
    shutil.copytree(flow.workspace.model("base"), other.workspace.model("base"))
    taken = adopt(other, "ready")
    assert taken == other.workspace.compression("ready")
    assert (taken.scheme, taken.recipe, taken.origin) == (
        "FP8_DYNAMIC",
        None,
        str(sources["ready"]),
    )
    assert taken.base.sha256 == made.base.sha256
    ours, theirs = other.workspace.model("ready"), sources["ready"]
    assert file_digest(ours / "model.safetensors") == file_digest(theirs / "model.safetensors")
    assert (taken.quantized_layers, taken.bits_per_weight) == (
        made.quantized_layers,
        made.bits_per_weight,
    )
    with pytest.raises(FlowError, match="not a quantised checkpoint"):
        adopt(other, "plain")


def test_calibration_is_templated_truncated_and_never_padded(flow, tokenizer):
    dataset, facts = calibration_dataset(flow, tokenizer)
    lengths = [len(row) for row in dataset["input_ids"]]
    assert lengths == [8, 16, 16, 16]  # "< user >" and five words; the rest are cut
    assert facts.tokens == sum(lengths) and facts.samples == 4
    assert facts.chat_template
    assert all(set(mask) == {1} for mask in dataset["attention_mask"])


def test_a_tokenizer_that_pads_whatever_it_is_told_is_refused(flow, tokenizer, monkeypatch):
    """As one that comes with a model and has code of its own can."""
    call = type(tokenizer).__call__
    pads = lambda self, *texts, **options: call(self, *texts, **{**options, "padding": True})  # noqa: E731
    monkeypatch.setattr(type(tokenizer), "__call__", pads)
    with pytest.raises(FlowError, match="8 of 64 calibration tokens are padding"):
        calibration_dataset(flow, tokenizer)


def test_plain_text_of_a_model_without_template(flow, tokenizer):
    tokenizer.chat_template = None
    write_rows(flow, [{"text": "w1 w2 w3"}] * 4)
    dataset, facts = calibration_dataset(flow, tokenizer)
    assert dataset["input_ids"][0] == [1, 2, 3]
    assert not facts.chat_template


def test_too_few_texts(flow, tokenizer):
    write_rows(flow, [{"text": "w1"}] * 3)
    with pytest.raises(FlowError, match=r"samples is 4, but .* gave 3 texts"):
        calibration_dataset(flow, tokenizer)


def test_rows_without_text(flow, tokenizer):
    write_rows(flow, [{"question": "w1"}] * 4)
    with pytest.raises(FlowError, match="neither messages nor text"):
        calibration_dataset(flow, tokenizer)


def hub_flow(folder, **dataset) -> Flow:
    calibration = {"dataset": {"path": str(folder), "split": "train", "column": "text", **dataset}}
    return Flow.open(
        "ci",
        {"calibration": calibration | {"samples": 5, "max_sequence_length": 16}},
        folder / "artifacts",
    )


def test_hub_dataset_is_shuffled_by_the_seed_and_cut_to_samples(tmp_path, tokenizer):
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i}"}) + "\n" for i in range(50))
    )
    first, facts = calibration_dataset(hub_flow(tmp_path), tokenizer)
    again, _ = calibration_dataset(hub_flow(tmp_path), tokenizer)
    assert first["input_ids"][:] == again["input_ids"][:]
    words = [row[-1] for row in first["input_ids"]]
    assert words != [0, 1, 2, 3, 4] and len(set(words)) == facts.samples == 5


def test_hub_dataset_without_that_column(tmp_path, tokenizer):
    (tmp_path / "train.jsonl").write_text(json.dumps({"body": "w1"}) + "\n")
    with pytest.raises(FlowError, match="no column 'text'; it has body"):
        calibration_dataset(hub_flow(tmp_path), tokenizer)


def test_hub_dataset_that_is_not_there(tmp_path, tokenizer):
    with pytest.raises(FlowError, match="cannot be loaded"):
        calibration_dataset(hub_flow(tmp_path, path=str(tmp_path / "nowhere")), tokenizer)


@pytest.mark.skipif(
    "__import__('torch').accelerator.is_available()",
    reason="AWQ runs here: there is an accelerator",
)
def test_awq_on_a_cpu_is_refused_before_it_starts(flow):
    flow = Flow.open(
        "ci",
        {
            "candidates": [
                {"name": "awq", "recipe": {"scheme": "W4A16", "algorithm": "awq", "group_size": 32}}
            ]
        },
        flow.workspace.root.parent,
    )
    with pytest.raises(FlowError, match="cannot run on a CPU"):
        compress(flow, "awq", lambda model, recipe: pytest.fail("must not be called"))
