"""Binds each verdict to the checkpoint it was reached on, and refuses to deploy anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from model_serve_flow.compare.ranking import recommended
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.compared import CandidateComparison, Comparison
from model_serve_flow.flow.results.measured import BASE, protocol_hash
from model_serve_flow.flow.results.shipped import (
    ShipDecision,
    ShipOverride,
    ShippedCandidate,
    ShipRecord,
)
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.digests import combined_digest, content_digests, file_digest
from model_serve_flow.system.files import now, read_result, write_json

COMPARISON = "report/comparison.json"
RECORD = "report/ship-record.json"
SHOWN = 12  # characters of a digest in a message

OVERRIDE = (
    "Deploy another model, or say why this one is deployed all the same: --set "
    'deploy.override_reason="...".'
)


def write_ship_records(flow: Flow, comparison: Comparison) -> Path:
    """Writes `report/ship-record.json` for the comparison that 06 has just written.

    Returns:
        The path of the file.

    Raises:
        FlowError: `comparison` is not the one in `report/comparison.json`, or a checkpoint on the
            disk is not the one that was measured.
    """
    space = flow.workspace
    if space.comparison().model_dump(mode="json") != comparison.model_dump(mode="json"):
        raise FlowError(f"{COMPARISON} does not hold the comparison that was made.", RERUN)
    best = recommended(comparison)
    record = ShipRecord(
        profile=flow.config.name,
        profile_sha256=profile_digest(flow.config),
        created_at=now(),
        base_sha256=comparison.base.sha256,
        results=_result_digests(
            space, [BASE, *(candidate.name for candidate in comparison.candidates)]
        ),
        comparison_sha256=file_digest(space.root / COMPARISON),
        margins=comparison.margins,
        candidates=tuple(
            _bound(space, candidate, candidate.name == best) for candidate in comparison.candidates
        ),
    )
    return write_json(space.root / RECORD, record)


def require_shippable(flow: Flow, name: str, override_reason: str = "") -> ShipDecision:
    """Reads every file of a checkpoint and checks that the ship record says SHIP for them.

    The base has no verdict. It passes if it is the base that the candidates were compared with. An
    override is also written into the ship record if the record is valid.

    Args:
        name: 'base' or a candidate's name.
        override_reason: why the model is deployed in spite of the problems; empty for no override.

    Raises:
        FlowError: there is no checkpoint. Without a reason also: the ship record is missing; the
            record, the comparison, a result, the profile or a file of the checkpoint has changed
            since; or the verdict is not SHIP. The message names every problem.
    """
    space, reason = flow.workspace, override_reason.strip()
    files = content_digests(space.model(name))
    if not files:
        raise FlowError(f"models/{name} holds no checkpoint.", RERUN)
    record, changes = _read_record(space)
    entry = _entry(record, name) if record is not None else None
    if record is not None:
        changes = [*_changes(flow, record), *_checkpoint_changes(record, name, files)]
    problems = [*changes, *_refusal(entry)]
    if problems and not reason:
        again = f"{RERUN} It measures and compares what has changed.\n" if changes else ""
        hint = f"\n{again}{OVERRIDE}"
        raise FlowError(f"{name} must not be deployed:\n  " + "\n  ".join(problems), hint)
    override = None
    if problems:
        override = ShipOverride(candidate=name, reason=reason, problem=" ".join(problems), at=now())
        if record is not None:
            overrides = (*record.overrides, override)
            write_json(space.root / RECORD, record.model_copy(update={"overrides": overrides}))
    verdict = entry.verdict if entry is not None else None
    return ShipDecision(
        name=name, sha256=combined_digest(files), verdict=verdict, override=override
    )


def record_digest(path: Path) -> str | None:
    """Computes the SHA-256 of a ship record without its overrides, which 07 adds.

    Returns:
        The digest; of the bytes if the file is not JSON; None if there is no file.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return protocol_hash({key: value for key, value in record.items() if key != "overrides"})
    except (ValueError, AttributeError):
        return file_digest(path)


def profile_digest(config: FlowConfig) -> str:
    """Computes the SHA-256 of the resolved profile without `deploy`.

    `deploy` says where a model goes, not what was measured.
    """
    return protocol_hash(config.model_dump(mode="json", exclude={"deploy"}))


def _bound(
    space: Workspace, candidate: CandidateComparison, is_recommended: bool
) -> ShippedCandidate:
    files = content_digests(space.model(candidate.name))
    if combined_digest(files) != candidate.sha256:
        raise FlowError(f"models/{candidate.name} is not the checkpoint that was measured.", RERUN)
    return ShippedCandidate(
        name=candidate.name,
        sha256=candidate.sha256,
        files=files,
        verdict=candidate.verdict,
        reason=candidate.reasons[0],
        recommended=is_recommended,
        looks=candidate.looks,
    )


def _result_digests(space: Workspace, models: list[str]) -> dict[str, str]:
    paths = [path for model in models for path in sorted(space.results(model).glob("*.json"))]
    return {path.relative_to(space.root).as_posix(): file_digest(path) for path in paths}


def _read_record(space: Workspace) -> tuple[ShipRecord | None, list[str]]:
    """Reads the ship record; returns the record, or the problem with it."""
    if not (space.root / RECORD).is_file():
        return None, [f"{RECORD} is missing."]
    try:
        return read_result(space.root / RECORD, ShipRecord), []
    except FlowError as error:  # a reason to refuse, which an override may overrule
        return None, [error.problem.replace(f"{space.root}/", "")]


def _changes(flow: Flow, record: ShipRecord) -> Iterator[str]:
    """Lists what has changed since the record was written: profile, results, comparison."""
    space = flow.workspace
    if (record.profile, record.profile_sha256) != (flow.config.name, profile_digest(flow.config)):
        yield (
            "The profile has changed since the verdict (the ship record is of profile "
            f"{record.profile})."
        )
    yield from _file_changes(space.root, {COMPARISON: record.comparison_sha256, **record.results})
    path = space.root / COMPARISON
    if path.is_file() and file_digest(path) == record.comparison_sha256:
        yield from _contradictions(record, space.comparison())


def _contradictions(record: ShipRecord, comparison: Comparison) -> Iterator[str]:
    """Lists entries of an edited record that contradict the comparison with the recorded hash."""
    if record.base_sha256 != comparison.base.sha256:
        yield f"{RECORD} was edited: its base_sha256 is not the one in {COMPARISON}."
    said = {c.name: (c.verdict, c.sha256) for c in comparison.candidates}
    for entry in record.candidates:
        verdict, sha256 = said.get(entry.name, ("nothing", ""))
        if (entry.verdict, entry.sha256) != (verdict, sha256):
            yield (
                f"{RECORD} was edited: it says {entry.verdict} of {entry.name} "
                f"{_short(entry.sha256)}, {COMPARISON} says {verdict} of {_short(sha256)}."
            )


def _checkpoint_changes(record: ShipRecord, name: str, files: dict[str, str]) -> Iterator[str]:
    entry, digest = _entry(record, name), combined_digest(files)
    expected = record.base_sha256 if name == BASE else entry.sha256 if entry is not None else None
    if expected is None:
        yield f"{RECORD} holds no candidate {name!r}."
        return
    if entry is not None:
        yield from _differences(f"models/{name}", entry.files, files)
    if digest != expected:
        yield (
            f"models/{name} has the digest {_short(digest)}, the ship record says "
            f"{_short(expected)}."
        )


def _refusal(entry: ShippedCandidate | None) -> Iterator[str]:
    if entry is not None and entry.verdict != "SHIP":
        yield f"The verdict of {entry.name} is {entry.verdict}: {entry.reason}"


def _file_changes(root: Path, expected: dict[str, str]) -> Iterator[str]:
    found = {path: file_digest(root / path) for path in expected if (root / path).is_file()}
    return _differences("", expected, found)


def _differences(folder: str, expected: dict[str, str], found: dict[str, str]) -> Iterator[str]:
    for path in sorted(expected.keys() | found.keys()):
        ours, theirs = found.get(path), expected.get(path)
        name = f"{folder}/{path}" if folder else path
        if ours is None:
            yield f"{name} is missing."
        elif theirs is None:
            yield f"{name} is not in the ship record."
        elif ours != theirs:
            yield f"{name} has SHA-256 {_short(ours)}, the ship record says {_short(theirs)}."


def _entry(record: ShipRecord, name: str) -> ShippedCandidate | None:
    return next((candidate for candidate in record.candidates if candidate.name == name), None)


def _short(digest: str) -> str:
    return f"{digest[:SHOWN]}…" if digest else "nothing"
