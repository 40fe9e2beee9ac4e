import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.system import environments, lockfiles

TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    lock = root / "examples" / "model-serve-flow" / "environments" / "serve" / "cpu.txt"
    lock.parent.mkdir(parents=True)
    lock.write_text("a==1\n")
    lock.with_name("cpu-torch.txt").write_text("torch==2+cpu\n")
    (lock.parents[1] / "build.txt").write_text("b==1\n")
    (root / "pyproject.toml").write_text("[project]\n")
    monkeypatch.setattr(environments, "checkout", lambda: root)
    monkeypatch.setenv("MODEL_SERVE_FLOW_ENVIRONMENTS", str(tmp_path / "environments"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return root


@pytest.fixture
def uv(monkeypatch):
    """Stands in for uv: records its calls; `venv` makes the interpreter's file."""
    calls = []

    def fake(built, log, variables, *arguments):
        calls.append(arguments)
        if arguments[0] == "venv":
            built.python.parent.mkdir(parents=True)
            built.python.touch()

    monkeypatch.setattr(environments, "_uv", fake)
    return calls


def test_builds_once(checkout, uv):
    built = environments.ensure("serve", "cpu")
    environments.ensure("serve", "cpu")
    assert [call[0] for call in uv] == ["venv", "pip", "pip", "pip"]
    kernel = json.loads(
        (built.jupyter_path / "kernels" / "model-serve-flow-serve" / "kernel.json").read_text()
    )
    assert kernel["env"]["DO_NOT_TRACK"] == "1"
    assert str(built.jupyter_path) in environments.jupyter_path().split(":")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_predictors_are_built_of_one_lock_without_torch_and_without_a_kernel(
    checkout, uv, device
):
    lock = environments.lock_path("predictors", device)
    lock.parent.mkdir()
    lock.write_text("a==1\n")
    built = environments.ensure("predictors", device)
    assert [call[0] for call in uv] == ["venv", "pip", "pip"]
    assert str(lock) in uv[1] and sys.executable in uv[0]
    assert not built.jupyter_path.exists()
    assert str(built.jupyter_path) not in environments.jupyter_path()
    assert environments.is_ready("predictors", device)


def test_settings_of_a_linter_build_no_environment_again_and_a_dependency_does(checkout, uv):
    environments.ensure("serve", "cpu")
    project = checkout / "pyproject.toml"
    project.write_text("[project]\n[tool.ruff]\nline-length = 100\n")
    assert environments.is_ready("serve", "cpu")
    project.write_text('[project]\ndependencies = ["a"]\n')
    assert not environments.is_ready("serve", "cpu")


def test_what_a_kernel_imports_is_compiled_once_whatever_the_image_says(checkout, uv, tmp_path):
    built = environments.ensure("serve", "cpu")
    kernel = json.loads(
        (built.jupyter_path / "kernels" / "model-serve-flow-serve" / "kernel.json").read_text()
    )
    (tmp_path / "lesson.py").touch()
    variables = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tmp_path),
        **kernel["env"],
    }
    subprocess.run([sys.executable, "-c", "import lesson"], env=variables, check=True)
    assert list(tmp_path.glob("__pycache__/lesson.*.pyc"))


@pytest.mark.parametrize(
    ("users", "expected"), [(None, "passive"), ("active", "active"), ("", "passive")]
)
def test_a_kernel_waits_passively_unless_the_user_wants_otherwise(
    checkout, uv, tmp_path, users, expected
):
    """As Jupyter starts it: the specification's `env` over the surrounding one,
    then its command.
    """
    built = environments.ensure("serve", "cpu")
    kernel = json.loads(
        (built.jupyter_path / "kernels" / "model-serve-flow-serve" / "kernel.json").read_text()
    )
    built.python.write_text('#!/bin/sh\necho "$OMP_WAIT_POLICY, $DO_NOT_TRACK, $*"\n')
    built.python.chmod(0o755)
    surrounding = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    variables = {
        **surrounding,
        **({} if users is None else {"OMP_WAIT_POLICY": users}),
        **kernel["env"],
    }
    command = [word.format(connection_file="a file") for word in kernel["argv"]]
    said = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert said == f"{expected}, 1, -m ipykernel_launcher -f a file\n"


def test_an_environment_whose_kernel_starts_otherwise_is_built_again(checkout, uv, monkeypatch):
    environments.ensure("serve", "cpu")
    monkeypatch.setattr(environments, "USER_MAY_CHANGE", {"OMP_WAIT_POLICY": "active"})
    assert not environments.is_ready("serve", "cpu")


def test_the_variables_of_a_process_keep_what_the_user_set(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environments.process_variables()["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    assert environments.process_variables()["OMP_WAIT_POLICY"] == "active"
    assert environments.process_variables()["DO_NOT_TRACK"] == "1", "no telemetry, whatever is set"


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [
        (None, None, "127.0.0.1,localhost,::1,10.1.2.3"),
        ("hub.example", None, "hub.example,127.0.0.1,localhost,::1,10.1.2.3"),
        ("hub.example", " localhost,.corp", "hub.example,localhost,.corp,127.0.0.1,::1,10.1.2.3"),
        ("hub.example", "", "hub.example,127.0.0.1,localhost,::1,10.1.2.3"),
        ("*", None, "*"),
        ("hub.example", "*", "*"),
    ],
)
def test_no_proxy_gains_our_own_addresses_and_keeps_what_the_user_set(
    monkeypatch, upper, lower, expected
):
    for name, value in (("NO_PROXY", upper), ("no_proxy", lower)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert environments.direct("10.1.2.3") == {"NO_PROXY": expected, "no_proxy": expected}


def test_changed_lock_builds_again(checkout, uv):
    environments.ensure("serve", "cpu")
    environments.lock_path("serve", "cpu").write_text("a==2\n")
    assert not environments.is_ready("serve", "cpu")
    environments.ensure("serve", "cpu")
    assert len(uv) == 8


@pytest.mark.parametrize("path", [environments.torch_lock, lambda _: environments.build_lock()])
def test_every_lock_counts(checkout, uv, path):
    environments.ensure("serve", "cpu")
    path("serve").write_text("a==2\n")
    assert not environments.is_ready("serve", "cpu")
    path("serve").unlink()
    with pytest.raises(FlowError, match="is missing"):
        environments.ensure("serve", "cpu")


def wheel(folder, name, version, content):
    """A wheel whose one module is `content`; returns its pin."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return lockfiles.Pin(
        f"{name}=={version}", (f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",)
    )


@pytest.fixture
def offline(checkout, tmp_path, monkeypatch):
    """The real uv, which finds `a` and `torch` in a folder only; returns the folder."""
    wheels = tmp_path / "wheels"
    lockfiles.write(
        environments.lock_path("serve", "cpu"), [wheel(wheels, "a", "1", "good = True")]
    )
    wheel(wheels, "torch", "2+cpu", "")
    real = environments._uv

    def without_the_library(built, log, variables, *arguments):
        if "-e" not in arguments:
            real(built, log, variables, *arguments)

    monkeypatch.setattr(environments, "_uv", without_the_library)
    monkeypatch.setattr(environments, "cpu_torch", lambda: ([], {}))
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return wheels


def test_what_the_lock_names_is_installed(offline):
    built = environments.ensure("serve", "cpu")
    subprocess.run([built.python, "-c", "import a, torch; assert a.good"], check=True)


def test_tampered_wheel_is_refused(offline):
    wheel(offline, "a", "1", "good = False")
    with pytest.raises(FlowError, match="Hash mismatch for `a==1`"):
        environments.ensure("serve", "cpu")
    assert not environments.is_ready("serve", "cpu")


def test_pin_without_a_hash_is_refused(offline):
    lockfiles.write(environments.lock_path("serve", "cpu"), [lockfiles.Pin("a==1")])
    with pytest.raises(FlowError, match="must have a hash"):
        environments.ensure("serve", "cpu")


def test_half_built_is_built_again(checkout, uv):
    built = environments.ensure("serve", "cpu")
    (built.folder / "leftover").touch()
    built.marker.unlink()
    environments.ensure("serve", "cpu")
    assert not (built.folder / "leftover").exists()


def test_own_environment_is_never_removed(checkout, uv, monkeypatch):
    folder = environments.environment("serve").folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(folder))
    with pytest.raises(FlowError, match="out of date"):
        environments.ensure("serve", "cpu")
    assert folder.exists()


def test_failed_install_shows_end_of_output_and_log(checkout, tmp_path, monkeypatch):
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\necho no room on the disk >&2\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(environments, "uv_program", lambda: str(program))
    with pytest.raises(FlowError) as caught:
        environments.ensure("serve", "cpu")
    assert "no room on the disk" in caught.value.problem
    assert "status 7" in caught.value.problem
    assert Path(caught.value.hint.split(" is in ")[1].rstrip(".")).is_file()
    assert not environments.is_ready("serve", "cpu")


def test_unknown_environment(checkout):
    with pytest.raises(FlowError, match="Unknown environment 'vllm'"):
        environments.environment("vllm")


def test_missing_lock(checkout):
    with pytest.raises(FlowError, match="is missing"):
        environments.ensure("compress", "cpu")


def test_torch_from_find_links_that_hold_it(tmp_path, monkeypatch):
    (tmp_path / f"torch-2.13.0+cpu-{TAG}-{TAG}-any.whl").touch()
    (tmp_path / "torch-2.13.0+cpu-py3-none-any.whl").touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert environments.cpu_torch() == ([], {"UV_FIND_LINKS": str(tmp_path)})


@pytest.mark.parametrize(
    "wheel",
    ["torch-2.13.0+cpu-cp27-cp27m-manylinux_2_28_x86_64.whl", "numpy-2.0.0-py3-none-any.whl"],
)
def test_torch_from_uv_where_find_links_lack_it(tmp_path, monkeypatch, wheel):
    (tmp_path / wheel).touch()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert environments.cpu_torch() == (["--torch-backend", "cpu"], {})


def test_find_links_of_pip_configuration(monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    listed = subprocess.CompletedProcess(
        [], 0, stdout="global.cert='/x'\nglobal.find-links='\\n/a\\n/b'\n"
    )
    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: listed)
    assert environments._find_links() == ["/a", "/b"]
