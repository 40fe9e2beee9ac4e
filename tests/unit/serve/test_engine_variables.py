import pytest

from model_serve_flow.serve import engine_variables
from model_serve_flow.serve.engine_variables import inherited, known_names


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A package of that name, which must not be imported; returns its folder."""
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this takes more than ten seconds')")
    names = (
        "VLLM_PORT",
        "VLLM_DP_MASTER_PORT",
        "VLLM_LOGGING_LEVEL",
        "VLLM_API_KEY",
        "VLLM_TUNED",
        "VLLM_NAME_PORT",
    )
    lines = [f'    "{name}": lambda: os.getenv("{name}"),\n' for name in names]
    (package / "envs.py").write_text(
        "".join(["environment_variables = {\n", *lines, "}\n", 'OTHER = "VLLM_OTHER"\n'])
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    known_names.cache_clear()
    yield package
    known_names.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "reaches"),
    [
        ("VLLM_TUNED", "1", True),
        ("PATH", "/bin", True),
        ("vllm_port", "tcp://172.30.12.7:8000", True),  # of another program
        ("VLLM_PORT", "tcp://172.30.12.7:8000", False),
        ("VLLM_PORT", "8000", False),
        ("VLLM_SERVICE_HOST", "172.30.12.7", False),
        ("VLLM_PORT_8000_TCP", "tcp://172.30.12.7:8000", False),
        ("VLLM_NAME_PORT", "5000", True),
        ("VLLM_NAME_PORT", "udp://172.30.12.7:5000", False),
        ("VLLM_OTHER", "1", False),
        ("VLLM_LOGGING_LEVEL", "WARNING", False),
        ("VLLM_API_KEY", "of another server", False),
    ],
)
def test_only_what_vllm_knows_and_the_flow_does_not_decide_reaches_it(vllm, name, value, reaches):
    found = inherited({name: value})
    assert found.passed == ({name: value} if reaches else {})
    assert found.dropped == (() if reaches else (name,))


def test_where_vllm_is_not_installed_it_knows_no_variable(monkeypatch):
    monkeypatch.setattr(engine_variables.importlib.util, "find_spec", lambda name: None)
    known_names.cache_clear()
    assert known_names() == frozenset()
    known_names.cache_clear()
