"""Digests are computed once, and again as soon as a file looks changed;
writes are whole or not at all.
"""

import errno
import os
import re

import pytest

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.workspace import Workspace, describe_model
from model_serve_flow.system import digests
from model_serve_flow.system.digests import digest_once, file_digest, folder_digest
from model_serve_flow.system.files import (
    atomic_path,
    now,
    replacing_folder,
    swap_folder,
    write_text,
    writing,
)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that were read to be hashed, in order."""
    names = []

    def counted(path):
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    return names


def test_the_digest_of_a_file_and_of_a_folder_is_computed_once(checkpoint, hashed):
    weights = checkpoint / "model.safetensors"
    assert [digest_once(weights), digest_once(weights)] == [file_digest(weights)] * 2
    assert hashed == ["model.safetensors"]
    hashed.clear()
    described = describe_model("base", checkpoint)
    assert (
        describe_model("candidate", checkpoint).sha256
        == described.sha256
        == digest_once(checkpoint)
    )
    assert hashed == ["config.json", "model.safetensors"]
    assert described.sha256 == folder_digest(checkpoint) and described.size_bytes == 7


def test_an_edit_is_noticed_even_if_size_and_time_are_those_of_before(checkpoint):
    weights, before = checkpoint / "model.safetensors", digest_once(checkpoint)
    status = weights.stat()
    replaced = checkpoint / "new"
    replaced.write_bytes(b"Weights")
    os.utime(replaced, ns=(status.st_atime_ns, status.st_mtime_ns))
    replaced.replace(weights)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (
        status.st_size,
        status.st_mtime_ns,
    )
    assert digest_once(checkpoint) == folder_digest(checkpoint) != before


def test_a_file_that_came_or_went_is_noticed_and_a_model_card_does_not_count(checkpoint, hashed):
    before = digest_once(checkpoint)
    hashed.clear()
    (checkpoint / "README.md").write_text("# A model card")
    assert digest_once(checkpoint) == before and hashed == []
    (checkpoint / "config.json").rename(checkpoint / "chat_template.jinja")
    assert digest_once(checkpoint) == folder_digest(checkpoint) != before


def test_what_is_not_there_has_no_digest(checkpoint):
    weights = checkpoint / "model.safetensors"
    assert digest_once(weights) is not None
    weights.unlink()
    assert digest_once(weights) is None
    (checkpoint / "config.json").rename(checkpoint / "README.md")
    assert digest_once(checkpoint) is None and digest_once(checkpoint / "missing") is None
    with pytest.raises(FlowError, match=r"holds no \*\.safetensors weights"):
        describe_model("base", checkpoint)


def test_times_are_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


class Safetensors(Exception):
    """Like SafetensorError, which gives the system's error as text only."""


FULL = [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota of disk space is used up"),
    (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    (
        Safetensors("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full",
    ),
    (
        Safetensors("Error while serializing: I/O error: Disk quota exceeded (os error 122)"),
        "quota",
    ),
]


@pytest.mark.parametrize(("error", "reason"), FULL)
def test_a_full_disk_is_named_with_the_free_space_and_leaves_the_old_file(tmp_path, error, reason):
    path = write_text(tmp_path / "result.json", "old")
    with pytest.raises(FlowError, match=reason) as caught, atomic_path(path) as temporary:
        temporary.write_text("new")
        raise error
    assert str(path) in caught.value.problem and re.search(
        r"[\d,]+ MiB are free there", caught.value.problem
    )
    assert "--artifacts" in caught.value.hint and "doctor" in caught.value.hint
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    assert caught.value.__cause__ is error


def test_other_errors_pass_and_leave_nothing_either(tmp_path):
    for error in (
        OSError(errno.EIO, "Input/output error"),
        ValueError("(os error 5)"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)), atomic_path(tmp_path / "result.json"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_may_not_be_read_is_no_folder_that_may_not_be_written(tmp_path):
    refused = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.safetensors")
    with pytest.raises(PermissionError), writing(tmp_path / "base", "checkpoint"):
        raise refused
    own = PermissionError(
        errno.EACCES, "Permission denied", str(tmp_path / "base" / "model.safetensors")
    )
    with (
        pytest.raises(FlowError, match="base cannot be written: Permission denied"),
        writing(tmp_path / "base"),
    ):
        raise own


def test_a_failed_run_leaves_the_old_folder(tmp_path):
    old = tmp_path / "candidate"
    old.mkdir()
    (old / "mark").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(old) as partial:
        (partial / "mark").write_text("new")
        raise RuntimeError
    assert (old / "mark").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]
    with replacing_folder(old) as partial:
        (partial / "mark").write_text("new")
    assert (old / "mark").read_text() == "new"
    assert list(tmp_path.iterdir()) == [old]


def test_a_resumable_folder_stays_after_a_failure(tmp_path):
    with (
        pytest.raises(FlowError, match="the disk is full"),
        replacing_folder(tmp_path / "a", resumable=True) as partial,
    ):
        (partial / "first").write_text("whole")
        raise OSError(errno.ENOSPC, "No space left on device")
    with replacing_folder(tmp_path / "a", resumable=True) as partial:
        assert (partial / "first").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    old = tmp_path / "candidate"
    old.mkdir()
    (old / "mark").write_text("old")
    partial = tmp_path / "partial"
    partial.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        rename = type(partial).rename

        def refuse(path, target):
            if path == partial:
                raise OSError(errno.ENOSPC, "No space left on device")
            return rename(path, target)

        patch.setattr(type(partial), "rename", refuse)
        with pytest.raises(FlowError, match="the disk is full"):
            swap_folder(partial, old)
    assert (old / "mark").read_text() == "old" and sorted(tmp_path.iterdir()) == [old, partial]


def test_a_workspace_that_can_be_written_is_made_and_left_empty(tmp_path):
    space = Workspace.of(tmp_path / "artifacts", "p")
    space.require_writable()
    assert space.root.is_dir() and list(space.root.iterdir()) == []


def test_a_file_where_the_artifacts_should_go(tmp_path):
    (tmp_path / "artifacts").write_text("")
    with pytest.raises(FlowError, match="cannot be written: Not a directory"):
        Workspace.of(tmp_path / "artifacts", "p").require_writable()
