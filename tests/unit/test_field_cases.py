"""Inputs after public bug reports, made here: the right behaviour of each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import tiny_config

from model_serve_flow.compress.calibration import _messages, _text
from model_serve_flow.compress.compression import _save
from model_serve_flow.compress.recipes import check_ignore
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import Recipe
from model_serve_flow.flow.workspace import describe_model
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.models import resolve_checkpoint


def save_model(folder: Path, shards: int = 1) -> Path:
    """A tiny model, whole, in so many files with an index."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config())
    size = sum(weight.numel() * 4 for weight in model.parameters())
    model.save_pretrained(folder, max_shard_size="10GB" if shards == 1 else size // shards + 100)
    from tokenizers import Tokenizer, models

    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    ).save_pretrained(folder)
    return folder


# A model in two forms, and one that is not whole


def test_a_second_copy_of_the_weights_is_neither_counted_nor_copied(tmp_path):
    model = save_model(tmp_path / "model", shards=2)
    size = describe_model("base", model).size_bytes
    (model / "consolidated.safetensors").write_bytes(
        (sorted(model.glob("model-*"))[0]).read_bytes()
    )
    assert describe_model("base", model).size_bytes == size
    copied = resolve_checkpoint(str(model), None, tmp_path / "base")
    assert not (copied / "consolidated.safetensors").exists()
    assert describe_model("base", copied).size_bytes == size


def test_a_base_stored_in_float32_counts_as_the_engine_holds_it(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "float32")
    wide = describe_model("base", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16")
    narrow = describe_model("base", tmp_path / "bfloat16")
    assert wide.size_bytes > 1.9 * narrow.size_bytes
    headers = 0.02 * narrow.size_bytes
    for dtype in ("bfloat16", "float32"):
        assert wide.held_bytes(dtype) == pytest.approx(narrow.held_bytes(dtype), abs=headers)


def test_a_missing_shard_is_named_although_there_is_no_index(tmp_path):
    model = save_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    with pytest.raises(FlowError, match=r"lacks model-00002-of-00002\.safetensors"):
        check_checkpoint(model)


# Generation settings that transformers loads and refuses to save


def test_generation_settings_that_contradict_themselves_are_kept(tmp_path):
    from transformers import AutoModelForCausalLM

    base = save_model(tmp_path / "base")
    written = json.dumps({"do_sample": False, "temperature": 0.9, "top_p": 0.6})
    (base / "generation_config.json").write_text(written)
    _save(AutoModelForCausalLM.from_pretrained(base), base, tmp_path / "candidate")
    assert (tmp_path / "candidate" / "generation_config.json").read_text() == written
    assert (tmp_path / "candidate" / "model.safetensors").is_file()


# Entries of `ignore`


def test_a_pattern_that_is_no_regular_expression_is_refused_when_the_profile_is_loaded():
    recipe = {"scheme": "W8A8", "ignore": ["lm_head", "re:*.down_proj"]}
    with pytest.raises(FlowError, match=r"ignore.*'re:\*\.down_proj' is not a regular expression"):
        load_profile("ci", {"candidates": [{"name": "a", "recipe": recipe}]})


def test_an_entry_that_names_no_layer_is_refused_with_one_that_does():
    with pytest.raises(FlowError, match="'lm-head', which names no layer") as raised:
        check_ignore(Recipe(scheme="W8A8", ignore=("lm-head",)), tiny_config())
    assert "lm_head" in raised.value.hint
    check_ignore(Recipe(scheme="W8A8", ignore=("lm_head", "re:.*self_attn$")), tiny_config())


# Calibration rows as chat data have them


def test_rows_with_an_empty_system_turn_parts_and_tool_calls_are_used():
    row = [
        {"role": "system", "content": ""},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2 + 2?"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "4"},
    ]
    turns = _messages({"messages": row})
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
    assert [turn["content"] for turn in turns] == ["What is 2 + 2?", "", "4"]


@pytest.mark.parametrize(
    "row", [{"messages": [{"role": "user", "content": ""}]}, {"text": ""}, {"messages": ["a"]}, {}]
)
def test_a_row_without_any_text_is_named(row):
    with pytest.raises(FlowError, match="neither messages nor text"):
        _messages(row)


def test_a_row_that_the_chat_template_refuses_is_named():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    tokenizer.chat_template = "{{ raise_exception('a system turn is needed') }}"
    with pytest.raises(FlowError, match=r"a system turn is needed.*The row: .*hello"):
        _text([{"role": "user", "content": "hello"}], tokenizer)


# Paths relative to the profile


def test_paths_are_relative_to_the_profile_wherever_one_works(tmp_path, monkeypatch):
    mine, models = tmp_path / "mine", tmp_path / "mine" / "models" / "llama"
    models.mkdir(parents=True)
    (mine / "base.yaml").write_text("extends: ci\nname: mine-base\nseed: 5\n")
    candidates = (
        "[{name: a, source: ./models/llama}, {name: b, source: models/llama}, {name: c, source: "
        "org/model}]"
    )
    (mine / "my.yaml").write_text(f"extends: base.yaml\nname: mine\ncandidates: {candidates}\n")
    for folder in (tmp_path, mine, Path("/")):
        monkeypatch.chdir(folder)
        config = load_profile(str(mine / "my.yaml"))
        assert [candidate.source for candidate in config.candidates] == [
            str(models),
            str(models),
            "org/model",
        ]
        assert config.seed == 5


# A terminal of another encoding


def test_a_terminal_that_is_not_utf_8_shows_what_it_can(tmp_path):
    variables = {
        **os.environ,
        "PYTHONIOENCODING": "latin-1",
        "MODEL_SERVE_FLOW_ARTIFACTS": str(tmp_path),
    }
    command = [sys.executable, "-m", "model_serve_flow.cli", "plan", "--profile", "nicht-da-東京"]
    done = subprocess.run(command, env=variables, capture_output=True, check=False)
    assert done.returncode == 1 and b"Unknown profile 'nicht-da-??'" in done.stderr, done.stderr
