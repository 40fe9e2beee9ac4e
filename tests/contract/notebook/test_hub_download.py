"""The real huggingface_hub client against a stand-in for the hub:
what the user is told when it does not work.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
save = pytest.importorskip("safetensors.numpy").save

COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": save({"layer.weight": np.ones((4, 4), np.float32)}),
    "pytorch_model.bin": b"\x80\x04",
    "README.md": b"a model card",
}
RESOLVE = """
import sys
from pathlib import Path
from model_serve_flow.errors import FlowError
from model_serve_flow.setup.models import resolve_checkpoint, source_of
try:
    folder = resolve_checkpoint(sys.argv[1], sys.argv[2] or None, Path(sys.argv[3]))
    print(source_of(folder))
except FlowError as error:
    sys.exit(f"FlowError: {error}")
"""
NEW_PROFILE = """
import sys
from pathlib import Path
from model_serve_flow.errors import FlowError
from model_serve_flow.flow.load import load_profile
from model_serve_flow.setup.new_profile import new_profile
try:
    config = load_profile(str(new_profile(sys.argv[1], Path(sys.argv[2]), "h100")))
    model, chat = config.model, config.accuracy.apply_chat_template
    print(model.source, model.revision, model.parameters, chat)
except FlowError as error:
    sys.exit(f"FlowError: {error}")
"""
FETCH = """
import sys
from pathlib import Path
from model_serve_flow.errors import FlowError
from model_serve_flow.setup.mirror import Piece, fetch, lack
try:
    texts, gated = Piece("dataset", "org/texts", "main"), Piece("dataset", "org/gated")
    for piece in (Piece("model", "org/good"), texts, gated):
        fetch(piece, Path(sys.argv[1]))
        assert lack(piece, Path(sys.argv[1])) is None
except FlowError as error:
    sys.exit(f"FlowError: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """The model `org/good` and the dataset `org/texts` are open;
    of `org/gated` only the metadata are.
    """

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith(("/api/models/org/", "/api/datasets/org/")):
            self._answer_api()
        elif "/org/gated/" in self.path:
            self._send(
                403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            )
        else:
            content = FILES[self.path.rpartition("/")[2]]
            self._send(200, content, {"ETag": f'"{len(content)}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer_api(self) -> None:
        parts = self.path.partition("?")[0].split("/")
        repository, revision = parts[4], parts[6] if "revision" in parts else "main"
        if repository not in ("good", "texts", "gated"):
            self._send(
                404,
                b"",
                {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
            )
        elif revision not in ("main", COMMIT):
            self._send(
                404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}
            )
        elif "tree" in parts:
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": "0"}
                for name, content in FILES.items()
            ]
            self._send(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        else:
            info = {
                "id": f"org/{repository}",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in FILES],
            }
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.requests
    server.shutdown()
    server.server_close()


def resolve(
    endpoint: str, source: str, destination: Path, revision: str = "", **variables: str
) -> tuple[int, str]:
    variables = {"HF_HOME": str(destination.parent / "hf"), **variables}
    return execute(endpoint, [RESOLVE, source, revision, str(destination)], variables)


def execute(endpoint: str, script: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """In a process of its own: the client reads its settings when it is imported."""
    home = {"HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    arguments = [sys.executable, "-c", *script]
    done = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        env={**clean, **home, **variables},
        check=False,
        timeout=120,
    )
    return done.returncode, (
        done.stdout if done.returncode == 0 else done.stderr
    ).strip().splitlines()[-1]


def test_good_repository(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, requests = hub
    destination = tmp_path / "models" / "base"
    assert resolve(endpoint, "org/good", destination) == (
        0,
        str({"hub": "org/good", "revision": None, "commit": COMMIT}),
    )
    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert {path.name for path in destination.iterdir()} == {*wanted, ".source.json"}
    assert (destination / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [path.name for path in destination.parent.iterdir() if path.name != "hf"] == ["base"]
    requests.clear()
    assert resolve(endpoint, "org/good", destination)[0] == 0
    assert requests == []


def test_gated_repository_without_access(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, _ = hub
    status, message = resolve(endpoint, "org/gated", tmp_path / "models" / "base")
    assert status == 1
    assert "FlowError: org/gated is gated" in message
    assert f"{endpoint}/org/gated" in message
    assert "HF_TOKEN" in message
    assert not (tmp_path / "models" / "base").exists()


@pytest.mark.parametrize(
    ("source", "revision", "expected"),
    [
        (
            "org/missing",
            "",
            "'org/missing' is neither a local folder nor a repository that you can see",
        ),
        ("org/good", "v9", "org/good has no revision 'v9'"),
        ("a/b/c", "", "'a/b/c' is neither a local folder nor a valid hub id"),
    ],
)
def test_what_does_not_exist(
    hub: tuple[str, list[str]], tmp_path: Path, source: str, revision: str, expected: str
) -> None:
    status, message = resolve(hub[0], source, tmp_path / "models" / "base", revision)
    assert status == 1
    assert f"FlowError: {expected}" in message


def test_no_network(tmp_path: Path) -> None:
    status, message = resolve("http://127.0.0.1:9", "org/good", tmp_path / "models" / "base")
    assert status == 1
    assert "FlowError: The hub cannot be reached to download org/good" in message
    assert "local folder" in message


def test_offline_mode(tmp_path: Path) -> None:
    status, message = resolve(
        "http://127.0.0.1:9", "org/good", tmp_path / "models" / "base", HF_HUB_OFFLINE="1"
    )
    assert status == 1
    assert "HF_HUB_OFFLINE" in message


def test_a_mirror_is_fetched_and_stands_in_for_the_hub(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, requests = hub
    mirror = tmp_path / "mirror"
    status, message = execute(endpoint, [FETCH, str(mirror)], {"HF_HOME": str(tmp_path / "hf")})
    assert status == 1
    assert "FlowError: org/gated is gated" in message
    assert f"{endpoint}/datasets/org/gated" in message
    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert {path.name for path in (mirror / "org" / "good").iterdir()} == wanted
    assert {path.name for path in (mirror / "org" / "texts").iterdir()} == set(FILES)
    assert not (mirror / "org" / "gated").exists()
    assert json.loads((mirror / "mirror.json").read_text()) == {
        "org/good": {"revision": None, "commit": COMMIT},
        "org/texts": {"revision": "main", "commit": COMMIT},
    }
    requests.clear()
    offline = {"MODEL_SERVE_FLOW_MIRROR": str(mirror), "HF_HUB_OFFLINE": "1"}
    assert resolve(endpoint, "org/good", tmp_path / "models" / "base", **offline) == (
        0,
        str({"folder": str(mirror / "org" / "good")}),
    )
    assert requests == []


def test_a_profile_is_written_from_the_small_files_alone(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, requests = hub
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    settings = {"model_type": "llama", "tie_word_embeddings": False, **sizes, **heads}
    monkeypatch.setitem(FILES, "config.json", json.dumps(settings).encode())
    variables = {"HF_HOME": str(tmp_path / "hf")}
    script = [NEW_PROFILE, "org/good", str(tmp_path / "new.yaml")]
    assert execute(endpoint, script, variables) == (0, f"org/good {COMMIT} 8030261248 True")
    assert not any("safetensors" in path for path in requests), "weights were asked for"
    for source, said in (("org/gated", "is gated"), ("org/none", "is neither a local folder")):
        script = [NEW_PROFILE, source, str(tmp_path / "other.yaml")]
        status, output = execute(endpoint, script, variables)
        assert status == 1 and said in output
    assert not (tmp_path / "other.yaml").exists()
