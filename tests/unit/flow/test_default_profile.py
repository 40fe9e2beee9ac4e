"""Which profile a machine takes by default,
and that everything that has a default takes this one.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from model_serve_flow.cli import main
from model_serve_flow.flow import default_profile as module
from model_serve_flow.flow.default_profile import default_profile, for_this_processor
from model_serve_flow.flow.flow import Flow
from model_serve_flow.run import runner
from model_serve_flow.system.checkout import MODULES
from model_serve_flow.system.processor import describe_cpu

ROOT = Path(__file__).resolve().parents[3]
AVX512 = (
    "processor : 0\nmodel name : Xeon\nflags : fpu avx2 avx512f amx_tile\n\nprocessor : 1\nmodel "
    "name : Other\n"
)
AVX2 = "processor : 0\nmodel name : Ryzen\nflags : fpu avx2\n"
ARM = "processor : 0\nFeatures : fp asimd\n"


def test_cpu_features_come_from_the_flags():
    assert describe_cpu(AVX512) == ("Xeon", ("avx2", "avx512f", "amx_tile"))


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "default", "ci"),
    [
        ("x86_64", AVX512, "cpu-smollm2", "ci"),
        ("x86_64", AVX2, "cpu-smollm2-avx2", "ci-avx2"),
        ("aarch64", ARM, "cpu-smollm2", "ci"),
        # no such file: another system, which the flow refuses later
        ("x86_64", None, "cpu-smollm2-avx2", "ci-avx2"),
    ],
)
def test_the_default_follows_from_the_processor(
    tmp_path, monkeypatch, architecture, cpuinfo, default, ci
):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert (default_profile(), for_this_processor("ci")) == (default, ci)


@pytest.fixture(params=[AVX512, AVX2], ids=["avx512", "avx2"])
def processor(request, tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(request.param)


def make(target, *variables):
    """The last command that make would run; the tests themselves may be run by make."""
    line = ["make", "--dry-run", "--no-print-directory", target, *variables]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(line, cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_make_the_command_line_and_the_notebooks_take_the_same_profile(
    processor, monkeypatch, tmp_path
):
    asked = []
    monkeypatch.setattr(runner, "run", lambda flow, *_: asked.append(flow.profile))
    program, *arguments = make("demo", "PROFILE=")
    assert Path(program).name == "model-serve-flow"
    assert CliRunner().invoke(main, [*arguments, "--artifacts", str(tmp_path)]).exit_code == 0
    for path in sorted((ROOT / MODULES).glob("*/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        (parameters,) = [
            cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])
        ]
        values = {}
        exec(parameters, values)
        asked.append(Flow.open(values["profile"], values["overrides"], tmp_path).config.name)
    assert asked == [default_profile()] * 9


def test_make_passes_on_a_profile_that_is_named():
    assert make("demo", "PROFILE=ci")[-2:] == ["--profile", "ci"]
    assert make("bench", "PROFILE=ci")[-2:] == ["benchmarks/bench.py", "ci"]
    assert make("bench", "PROFILE=")[-1] == "benchmarks/bench.py"


@pytest.mark.parametrize("script", ["benchmarks/bench.py", "tests/soak/soak.py"])
def test_scripts_without_a_profile_have_the_default_too(script):
    asked = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    default = {"bench": default_profile(), "soak": for_this_processor("ci")}[Path(script).stem]
    assert f"bydefault{default}" in "".join(asked.stdout.split())  # wherever the lines are broken


def test_help_shows_the_default_of_this_machine():
    text = " ".join(CliRunner().invoke(main, ["run", "--help"]).output.split())
    assert f"[default: ({default_profile()}, by the processor of this machine)]" in text
