"""Which index is asked: places whose settings name an index with other files,
imitated with the real uv.
"""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.system import environments, index, lockfiles
from model_serve_flow.system.environments import Environment
from model_serve_flow.system.index import UV_INDEX, VARIABLE, indexes

COMPANY, OTHER = "https://user:secret@pypi.company.example/simple", "https://other.example/simple"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *UV_INDEX,
        VARIABLE,
        "SSL_CERT_FILE",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(index, "pip_settings", dict)


def simple_index(folder: Path, content: str) -> tuple[str, str]:
    """An index of files with the one package `a`, version 1; its URL,
    and the digest of its wheel.
    """
    place = folder / "a"
    place.mkdir(parents=True)
    wheel, info = place / "a-1-py3-none-any.whl", "a-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.py", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: a\nVersion: 1\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (place / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    return folder.as_uri(), digest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs the locked `a` with the real uv, without a network; returns what came of it."""
    url, digest = simple_index(tmp_path / "pinned", "right = True")
    lockfiles.write(tmp_path / "lock.txt", [lockfiles.Pin("a==1", (f"sha256:{digest}",))])
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_OFFLINE", "1")  # files are there; the public index is not
    built = Environment("serve", tmp_path / "environment")

    def run() -> Path:
        arguments = ["pip", "install", "--target", str(built.folder), "--require-hashes"]
        environments._uv(built, tmp_path / "log", {}, *arguments, "-r", str(tmp_path / "lock.txt"))
        return built.folder / "a.py"

    run.right = url
    return run


@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_an_index_with_other_files_is_named_and_the_way_out_too(
    install, tmp_path, monkeypatch, variable
):
    foreign, _ = simple_index(tmp_path / "foreign", "right = False")
    monkeypatch.setenv(variable, foreign)
    with pytest.raises(FlowError) as raised:
        install()
    for part in (foreign, VARIABLE, "AirGapped.md"):
        assert part in raised.value.hint
    monkeypatch.setenv(VARIABLE, install.right)
    assert install().read_text() == "right = True"


def test_a_configuration_file_of_the_image_does_not_count_where_the_index_is_named(
    install, tmp_path, monkeypatch
):
    foreign, _ = simple_index(tmp_path / "foreign", "right = False")
    (tmp_path / "uv.toml").write_text(f'index-url = "{foreign}"\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "uv.toml"))
    monkeypatch.setenv(VARIABLE, install.right)
    assert install().read_text() == "right = True"


def test_the_index_that_only_pip_knows_is_asked(install, monkeypatch):
    monkeypatch.setattr(index, "pip_settings", lambda: {"index-url": install.right})
    assert install().is_file()


def test_after_an_index_with_other_files_the_public_one_is_asked():
    first, second = indexes({"UV_INDEX_URL": COMPANY, "UV_CONFIG_FILE": "/opt/uv.toml"})
    assert first.place == "https://pypi.company.example/simple", "without the password"
    assert "UV_INDEX_URL" not in second.environment({"UV_INDEX_URL": COMPANY, "A": "1"})
    assert second.environment({"A": "1"})["A"] == "1"


def test_the_index_that_is_named_is_asked_alone():
    (only,) = indexes({"UV_INDEX_URL": COMPANY, VARIABLE: OTHER})
    assert only.environment({"UV_INDEX_URL": COMPANY})["UV_DEFAULT_INDEX"] == OTHER
    (public,) = indexes({"UV_INDEX_URL": COMPANY, VARIABLE: "public"})
    assert "UV_DEFAULT_INDEX" not in public.environment({"UV_INDEX_URL": COMPANY})


def test_the_certificate_and_the_proxy_that_only_pip_knows_go_to_uv(monkeypatch):
    known = {"cert": "/etc/company.pem", "proxy": "http://proxy:3128", "index-url": COMPANY}
    monkeypatch.setattr(index, "pip_settings", lambda: known)
    first = indexes({})[0].variables
    assert (
        first["SSL_CERT_FILE"] == "/etc/company.pem" and first["HTTPS_PROXY"] == "http://proxy:3128"
    )
    assert first["UV_DEFAULT_INDEX"] == COMPANY
    own = indexes({"SSL_CERT_FILE": "/mine.pem", "https_proxy": "http://mine"})[0].variables
    assert "SSL_CERT_FILE" not in own and "HTTPS_PROXY" not in own


def test_a_certificate_that_is_not_trusted_is_not_called_a_full_disk():
    log = "error: Failed to fetch: invalid peer certificate: UnknownIssuer"
    assert "SSL_CERT_FILE" in index.hint(log, indexes({}))
    assert "disk" not in index.hint(log, indexes({}))


def test_pytorch_that_cannot_be_fetched_is_named_with_its_own_place():
    log = "error: request for url (https://torch.example/whl/cpu/torch/): dns error"
    assert "PIP_FIND_LINKS" in index.hint(log, indexes({}))


def test_settings_are_read_as_pip_lists_them(monkeypatch):
    monkeypatch.undo()
    listed = subprocess.CompletedProcess(
        [], 0, stdout="global.cert='/a'\n:env:.cert='/b'\nuser.index-url='x'\n"
    )
    monkeypatch.setattr(index.subprocess, "run", lambda *_, **__: listed)
    index.pip_settings.cache_clear()
    try:
        assert index.pip_settings() == {"cert": "/b", "index-url": "x"}
    finally:
        index.pip_settings.cache_clear()
