"""Model folders that mean harm: each is refused, by file and reason,
before anything of it is loaded.
"""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest

from model_serve_flow.compress.compression import adopt
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.measure.guidellm.commands import load_command
from model_serve_flow.serve.vllm import engine_arguments
from model_serve_flow.setup import untrusted
from model_serve_flow.setup.integrity import check_checkpoint
from model_serve_flow.setup.models import prepare_base, resolve_checkpoint, source_of

np = pytest.importorskip("numpy")
save_file = pytest.importorskip("safetensors.numpy").save_file

TEMPLATE = """{%- for message in messages %}
{%- if message['role'] not in ('user', 'assistant') %}{{ raise_exception('unknown role') }}{% endif %}
{{- '<|' + message.role + '|>' + message['content'] | trim + eos_token }}
{%- if loop.last and add_generation_prompt %}{% generation %}<|assistant|>{% endgeneration %}{% break %}{% endif %}
{%- endfor %}
{{- {'date': strftime_now('%Y')} | tojson(indent=2) }}"""  # noqa: E501


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"layer.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"layer.weight": "model.safetensors"}}'
    )
    (folder / "config.json").write_text('{"model_type": "llama", "auto_map": null}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    return write(tmp_path / "model")


def refused(folder: Path, name: str, reason: str, **options) -> None:
    with pytest.raises(FlowError, match=reason) as caught:
        check_checkpoint(folder, **options)
    assert name in str(caught.value) and caught.value.hint


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_folder_is_accepted(model):
    check_checkpoint(model)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "optimizer.pkl"]
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_pickle_beside_or_instead_of_safetensors(model, tmp_path, name, beside):
    mark = tmp_path / "executed"
    (model / name).write_bytes(pickle.dumps(Bomb(mark)))
    if not beside:
        (model / "model.safetensors").unlink()
    refused(model, name, "may be a Python pickle")
    assert not mark.exists()


def test_a_pickle_that_is_called_safetensors(model, tmp_path):
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")) * 100)
    refused(model, "model.safetensors", "corrupt|header")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "other/repository--modeling_x.X"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "configuration_x.X"}}}),
        ("config.json", {"trust_remote_code": True}),
        ("config.json", {"custom_pipelines": {"x": {"impl": "pipeline.X"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        ("generation_config.json", {"auto_map": {"x": "y.Z"}}),
    ],
)
def test_settings_that_ask_for_the_models_own_code(model, name, settings):
    (model / name).write_text(json.dumps(settings))
    refused(
        model,
        name,
        "asks for Python code to be run .'(auto_map|trust_remote_code|custom_pipelines)'",
    )


def test_python_beside_the_weights_needs_the_flag_which_is_recorded(model, tmp_path):
    (model / "modeling_x.py").write_text("raise SystemExit('executed')")
    refused(model, "modeling_x.py", "is Python code")
    edit(model / "config.json", auto_map={"AutoConfig": "modeling_x.X"})
    overrides = {"model.wheel": None, "model.source": str(model)}
    with pytest.raises(FlowError, match=r"model\.trust_remote_code"):
        prepare_base(Flow.open("ci", overrides, tmp_path / "a"))
    flow = Flow.open("ci", {**overrides, "model.trust_remote_code": True}, tmp_path / "b")
    folder = prepare_base(flow)
    assert (folder / "modeling_x.py").is_file()
    assert source_of(folder) == {"folder": str(model), "trust_remote_code": True}
    with pytest.raises(FlowError, match=r"modeling_x\.py is Python code"):  # the flag taken back
        prepare_base(Flow.open("ci", overrides, tmp_path / "b"))


def test_engine_and_tools_get_the_flag_only_from_the_profile():
    allowed, plain = load_profile("ci", {"model.trust_remote_code": True}), load_profile("ci")
    assert "--trust-remote-code" in engine_arguments(allowed)
    assert "--trust-remote-code" not in engine_arguments(plain)
    for config, said in ((allowed, True), (plain, False)):
        assert (
            "trust_remote_code"
            in str(load_command(config, "http://127.0.0.1:1", "base", "base", "out"))
        ) is said
    with pytest.raises(FlowError, match=r"model\.trust_remote_code"):
        load_profile("ci", {"model.trust_remote_code": "yes"})


def test_a_profile_without_the_flag_keeps_its_digest():
    assert "trust_remote_code" not in load_profile("ci").model_dump()["model"]
    assert (
        load_profile("ci", {"model.trust_remote_code": True}).model_dump()["model"][
            "trust_remote_code"
        ]
        is True
    )


def test_a_link_that_leads_out_of_the_folder(model, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"key": 1}')
    for target in (secret, "../secret.json", "/etc/hostname", "../missing"):
        link = model / "generation_config.json"
        link.symlink_to(target)
        refused(model, "generation_config.json", "link that leads out")
        link.unlink()
    (model / "data").symlink_to(tmp_path)
    refused(model, "data", "link that leads out")


def test_links_within_the_folder_and_within_the_hubs_cache_are_sound(model, tmp_path):
    (model / "vocab.json").symlink_to("tokenizer.json")
    check_checkpoint(model)
    cache = tmp_path / "hub" / "models--org--model"
    snapshot = cache / "snapshots" / "0123abcd"
    write(cache / "blobs")
    snapshot.mkdir(parents=True)
    for blob in (cache / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(Path("../../blobs") / blob.name)
    check_checkpoint(snapshot)
    (cache.parent / "other.json").write_text("{}")
    (snapshot / "generation_config.json").symlink_to("../../../other.json")
    refused(snapshot, "generation_config.json", "link that leads out")


def test_a_pipe_that_would_never_be_read_to_its_end(model):
    os.mkfifo(model / "generation_config.json")
    refused(model, "generation_config.json", "neither a file nor a folder")


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/../model.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        7,
        None,
        "m.bin",
    ],
)
def test_an_index_that_leads_elsewhere(model, shard):
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"layer.weight": shard}})
    )
    refused(model, "model.safetensors.index.json", "'layer.weight' in .* not the name of a")


@pytest.mark.parametrize("index", [[], {}, {"weight_map": ["model.safetensors"]}])
def test_an_index_without_a_map(model, index):
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model, "model.safetensors.index.json", "has no 'weight_map'")


def test_a_header_that_claims_ten_gigabytes(model):
    whole = (model / "model.safetensors").read_bytes()
    for claimed in (10_000_000_000, 2**64 - 1, len(whole) - 7):
        (model / "model.safetensors").write_bytes(struct.pack("<Q", claimed) + whole[8:])
        refused(model, "model.safetensors", f"header alone claims {claimed}")


def test_a_header_of_the_claimed_length_is_too_long_all_the_same(model):
    claimed = untrusted.HEADER_BYTES + 1
    with (model / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", claimed))
        file.truncate(claimed + 100)  # sparse: takes no room
    refused(model, "model.safetensors", f"claims a header of {claimed} bytes")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "text",
    [
        '{"x": ' + "9" * 5000 + "}",
        '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"x": ',
        b'{"x": "\xff"}',
    ],
    ids=["long integer", "nested", "truncated", "no text"],
)
def test_settings_that_are_not_json(model, name, text):
    (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(model, name, "is not valid JSON")


@pytest.mark.parametrize(
    "value", ["NaN", "[0.0, Infinity]", "-Infinity", "1e999", '{"__float__": "Infinity"}']
)
def test_numbers_that_published_models_have_in_their_settings(model, value):
    (model / "config.json").write_text(f'{{"model_type": "llama", "time_step_limit": {value}}}')
    untrusted.refuse_hostile(model)


def test_settings_that_fill_the_memory(model):
    with (model / "config.json").open("wb") as file:
        file.truncate(untrusted.SETTINGS_BYTES + 1)
    refused(model, "config.json", "settings have at most")


ESCAPES = {
    "attribute": "{{ ''.__class__.__mro__ }}",
    "in a branch not taken": "{% if messages | length > 99 %}{{ cycler.__init__.__globals__ }}{% "
    "endif %}",
    "by subscript": "{{ ''['__class__'] }}",
    "by filter": "{{ '' | attr('__class__') }}",
    "by map": "{{ [''] | map(attribute='__class__') | list }}",
    "by a name put together": "{{ ''['__cl' ~ 'ass__'] }}",
    "by a filter and a name put together": "{{ '' | attr('__cl' ~ 'ass__') }}",
    "by format": "{{ '{0.__class__}'.format('') }}",
    "another file": "{% include '/etc/passwd' %}",
    "changing the conversation": "{{ messages.clear() }}",
}


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "tokenizer_config.json", "list", "chat_template.json"]
)
def test_a_chat_template_that_leaves_its_sandbox(model, place):
    if place.endswith(".jinja"):
        (model / place).write_text(ESCAPES["attribute"])
    elif place == "list":
        place = "tokenizer_config.json"
        edit(model / place, chat_template=[{"name": "tool_use", "template": ESCAPES["attribute"]}])
    else:
        (model / place).write_text(json.dumps({"chat_template": ESCAPES["attribute"]}))
    refused(model, place, "tries to leave its sandbox: .*__")


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES)
def test_every_way_out_of_the_sandbox(model, template):
    (model / "chat_template.jinja").write_text(template)
    refused(model, "chat_template.jinja", "tries to leave its sandbox")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "does not end within 2 s",
        ),
        ("{{ 'a' * 10 ** 10 }}", "asks for too much"),
        ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "writes more than"),
        ("{% if messages %}", "is not a Jinja template"),
        ("{% break %}", "is not a Jinja template"),
    ],
)
def test_a_chat_template_that_exhausts_the_machine_or_is_none(model, monkeypatch, template, reason):
    monkeypatch.setattr(untrusted, "TEMPLATE_SECONDS", 2)
    (model / "chat_template.jinja").write_text(template)
    refused(model, "chat_template.jinja", reason)


def test_a_template_that_is_no_text(model):
    edit(model / "tokenizer_config.json", chat_template=[7])
    refused(model, "tokenizer_config.json", "which is no text")


def test_a_template_that_rejects_the_conversation_is_sound(model):
    (model / "chat_template.jinja").write_text(
        "{{ raise_exception('a system message must come first') }}"
    )
    check_checkpoint(model)


def test_a_hostile_source_leaves_nothing_in_the_workspace(model, tmp_path):
    (model / "chat_template.jinja").write_text(ESCAPES["attribute"])
    destination = tmp_path / "artifacts" / "base"
    with pytest.raises(FlowError, match="sandbox"):
        resolve_checkpoint(str(model), None, destination)
    assert not destination.exists()


def test_a_ready_made_candidate_is_checked_too(model, tmp_path):
    (model / "modeling_x.py").write_text("raise SystemExit('executed')")
    flow = Flow.open(
        "ci", {"candidates": [{"name": "ready", "source": str(model)}]}, tmp_path / "artifacts"
    )
    with pytest.raises(FlowError, match=r"modeling_x\.py is Python code"):
        adopt(flow, "ready")
    assert not flow.workspace.model("ready").exists()
