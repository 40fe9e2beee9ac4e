"""The GitHub Action and the GitLab job, run line by line in a bare folder with nothing but the base
dependencies.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from support import base_only

ROOT = Path(__file__).resolve().parents[3]
CI = ROOT / "ci"
SAMPLES = ROOT / "examples" / "model-serve-flow" / "assets" / "sample-results"
GITHUB = ("bash", "--noprofile", "--norc", "-eo", "pipefail")  # what `shell: bash` means there
REPORTS = ("compare.html", "compare.md", "compare.json", "compare.xml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return base_only.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """The action's environment, made by its own first step; its dependencies are linked,
    not fetched.
    """
    temporary = tmp_path_factory.mktemp("runner")
    step = yaml.safe_load((CI / "action.yml").read_text())["runs"]["steps"][0]
    done = run_step(step, {"package": str(wheel), "python": sys.executable}, temporary, temporary)
    assert done.returncode == 0, done.stderr
    link(temporary / "model-serve-flow")
    return temporary


def link(environment):
    (site,) = environment.glob("lib/python*/site-packages")
    base_only.link_into(site)


def surroundings(**more):
    """An environment without this project's paths,
    in which pip takes what it is given and asks nobody.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLUMNS")}
    return {
        **kept,
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **more,
    }


def run_step(step, inputs, folder, temporary):
    """Runs a step as GitHub does: inputs go into its variables, its lines into a file."""
    action = yaml.safe_load((CI / "action.yml").read_text())
    values = {name: entry.get("default", "") for name, entry in action["inputs"].items()} | inputs

    def filled(text):
        text = text.replace("${{ github.action_path }}", str(CI))
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values[found[1]], text)

    variables = {name: filled(text) for name, text in step["env"].items()}
    assert "${{" not in step["run"] and not any("${{" in text for text in variables.values())
    script = folder / "step.sh"
    script.write_text(step["run"])
    files = {
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
    }
    environment = surroundings(RUNNER_TEMP=str(temporary), **files, **variables)
    return subprocess.run(
        [*GITHUB, script], cwd=folder, env=environment, capture_output=True, text=True
    )


def compare(folder, installed, **inputs):
    step = yaml.safe_load((CI / "action.yml").read_text())["runs"]["steps"][1]
    return run_step(step, inputs, folder, installed)


def outputs(folder):
    return dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())


def test_the_action_fails_on_a_candidate_that_must_not_ship(tmp_path, installed):
    shutil.copytree(SAMPLES, tmp_path / "results")
    done = compare(tmp_path, installed, base="results/base", candidate="results/candidate")
    assert done.returncode == 10, done.stderr
    assert done.stdout.startswith("DO NOT SHIP: ")
    assert outputs(tmp_path) == {"verdict": "DO NOT SHIP", "exit-code": "10"}
    assert "**DO NOT SHIP: " in (tmp_path / "summary").read_text()
    report = tmp_path / "compare-report"
    assert sorted(path.name for path in report.iterdir()) == sorted(REPORTS)
    assert json.loads((report / "compare.json").read_text())["exit_code"] == 10
    assert ElementTree.parse(report / "compare.xml").getroot().tag == "testsuites"


def test_the_action_passes_a_candidate_that_ships_and_takes_options(tmp_path, installed):
    for name in ("base", "candidate"):
        rows = [f"q{number},{int(number % 3 > 0)}" for number in range(2000)]
        (tmp_path / f"{name}.csv").write_text("id,score\n" + "\n".join(rows) + "\n")
    sides = {"base": "base.csv", "candidate": "candidate.csv"}
    done = compare(tmp_path, installed, **sides, arguments="--margin 1 --advisory scores")
    assert done.returncode == 20, done.stderr  # its only task does not decide
    done = compare(tmp_path, installed, **sides, arguments="--margin 1", report="out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "compare.html").is_file()


def test_the_action_takes_a_failure_for_no_verdict(tmp_path, installed):
    stale = tmp_path / "compare-report"
    stale.mkdir()
    (stale / "compare.json").write_text('{"verdict": "SHIP"}')
    done = compare(tmp_path, installed, base="nothing", candidate="nothing either")
    assert done.returncode == 2
    assert outputs(tmp_path) == {"verdict": "", "exit-code": "2"}
    assert not (stale / "compare.json").exists()
    assert not (tmp_path / "summary").exists()


def test_the_gitlab_job_runs_and_keeps_its_report(tmp_path, wheel):
    shutil.copytree(SAMPLES, tmp_path / "results")
    job = yaml.safe_load((CI / "gitlab.yml").read_text())["compare-models"]
    variables = {**job["variables"], "PACKAGE": str(wheel)}
    install, decide = job["script"][:2], job["script"][2:]
    run_lines(install, tmp_path, variables)
    link(tmp_path / ".model-serve-flow")
    done = run_lines(decide, tmp_path, variables, check=False)
    assert done.returncode == 10, done.stderr
    for path in (*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]):
        assert (tmp_path / path).is_file(), path
    assert job["allow_failure"]["exit_codes"] == [20]


def run_lines(lines, folder, variables, check=True):
    """Runs the lines of a GitLab job, with python3 being this Python."""
    (folder / "bin").mkdir(exist_ok=True)
    if not (folder / "bin" / "python3").exists():
        (folder / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / "bin" / "python3").chmod(0o755)
    environment = surroundings(**variables, PATH=f"{folder / 'bin'}:{os.environ['PATH']}")
    script = "set -eo pipefail\n" + "\n".join(lines)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=check,
    )


def test_the_gitlab_job_installs_nothing_that_nobody_named(tmp_path):
    job = yaml.safe_load((CI / "gitlab.yml").read_text())["compare-models"]
    done = run_lines(job["script"][:2], tmp_path, job["variables"], check=False)
    assert done.returncode != 0 and "PACKAGE: is not set" in done.stderr
