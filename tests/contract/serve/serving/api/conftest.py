"""A server of the random two-layer Llama, shared by the tests that leave it as it was."""

import pytest
from support.serving_server import running
from tokenizers import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return Tokenizer.from_file(str(tiny_model / "tokenizer.json"))


@pytest.fixture(scope="session")
def server(tiny_model, tmp_path_factory):
    with running(
        tiny_model,
        tmp_path_factory.mktemp("server") / "log",
        "--length",
        "1024",
    ) as server:
        yield server
        assert "Traceback" not in server.log.read_text()


@pytest.fixture
def start(tiny_model, tmp_path):
    """Starts a server that a test may break."""

    def begin(*options, **other):
        return running(tiny_model, tmp_path / "log", "--length", "1024", *options, **other)

    return begin
