"""Real faults of a disk: a small tmpfs that fills up, a mount that becomes read-only,
a limit on the size of files.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SPACE = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
PRELUDE = """
import json, os, resource, subprocess, sys
from pathlib import Path
from model_serve_flow.errors import FlowError
from model_serve_flow.setup.models import resolve_checkpoint
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.system.files import replacing_folder, write_json, write_text
disk = Path(sys.argv[1])
space = Workspace.of(disk, "p")
def fails(call, *arguments):
    try:
        call(*arguments)
    except FlowError as error:
        print(error)
        return
    sys.exit("no FlowError")
def left():
    return sorted(path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file())
def read_only():
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
"""


def on_small_disk(tmp_path: Path, script: str, size: str = "1m", source: Path | None = None) -> str:
    """What the script prints, with a tmpfs of that size at `disk`, in namespaces of its own."""
    try:
        possible = subprocess.run(
            [*SPACE, f"mount -t tmpfs tmpfs {tmp_path}"], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no 'unshare' to mount a small disk with")
    if possible.returncode:
        pytest.skip(
            f"mounting a small disk in a namespace is not allowed here: {possible.stderr.strip()}"
        )
    disk, program = tmp_path / "disk", tmp_path / "script.py"
    disk.mkdir()
    program.write_text(PRELUDE + textwrap.dedent(script))
    command = f'mount -t tmpfs -o size={size} tmpfs "$0"; exec "$1" "$2" "$0" "$3"'
    done = subprocess.run(
        [*SPACE, command, disk, sys.executable, program, source or disk],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def save_checkpoint(folder: Path, rows: int) -> None:
    np = pytest.importorskip("numpy")
    save_file = pytest.importorskip("safetensors.numpy").save_file
    folder.mkdir()
    save_file({"layer.weight": np.ones((rows, 256), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")


def test_a_result_that_does_not_fit_leaves_the_old_one_and_no_temporary_file(tmp_path):
    said = on_small_disk(
        tmp_path,
        """
        path = space.results("base") / "accuracy.json"
        write_json(path, {"old": 1})
        fails(write_text, path, "x" * 2_000_000)
        assert left() == ["p/results/base/accuracy.json"], left()
        assert json.loads(path.read_text()) == {"old": 1}
        write_json(path, {"new": 1})
        """,
    )
    assert (
        "results/base/accuracy.json could not be written: the disk is full (1 MiB are free there"
        in said
    )
    assert "--artifacts" in said and "model-serve-flow doctor" in said


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path):
    save_checkpoint(tmp_path / "small", 200)
    save_checkpoint(tmp_path / "large", 4000)
    said = on_small_disk(
        tmp_path,
        """
        sources, base = Path(sys.argv[2]), space.model("base")
        resolve_checkpoint(str(sources / "small"), None, base)
        before = left()
        fails(resolve_checkpoint, str(sources / "large"), None, base)
        assert left() == before and (base / "model.safetensors").stat().st_size < 300_000
        resolve_checkpoint(str(sources / "small"), None, base)
        """,
        source=tmp_path,
    )
    assert "The checkpoint" in said and "models/base could not be written: the disk is full" in said


def test_weights_that_safetensors_itself_cannot_write(tmp_path):
    pytest.importorskip("safetensors")
    said = on_small_disk(
        tmp_path,
        """
        import numpy as np
        from safetensors.numpy import save_file
        def save(rows):
            with replacing_folder(space.model("candidate"), "checkpoint") as folder:
                (folder / "config.json").write_text("{}")
                save_file({"w": np.ones((rows, 256), np.float32)}, folder / "model.safetensors")
        save(100)
        before = left()
        fails(save, 4000)
        assert left() == before, left()
        """,
    )
    assert "models/candidate could not be written: the disk is full" in said


def test_a_disk_that_becomes_read_only(tmp_path):
    said = on_small_disk(
        tmp_path,
        """
        path = space.results("base") / "accuracy.json"
        space.require_writable()
        write_json(path, {"old": 1})
        read_only()
        fails(write_json, path, {"new": 1})
        fails(space.require_writable)
        with open(path) as file:
            assert json.load(file) == {"old": 1}
        assert left() == ["p/results/base/accuracy.json"]
        """,
    )
    assert said.count("cannot be written: Read-only file system.") == 2
    assert "choose another with --artifacts" in said


def test_a_disk_that_becomes_read_only_while_a_checkpoint_is_written(tmp_path):
    said = on_small_disk(
        tmp_path,
        """
        def save(text, fault):
            with replacing_folder(space.model("candidate"), "checkpoint") as folder:
                (folder / "config.json").write_text(text)
                fault()
        save("old", lambda: None)
        fails(save, "new", read_only)
        assert (space.model("candidate") / "config.json").read_text() == "old"
        """,
    )
    assert "models/candidate cannot be written: Read-only file system." in said


def test_a_full_disk_is_found_before_anything_starts(tmp_path):
    said = on_small_disk(
        tmp_path,
        """
        space.require_writable()
        assert left() == []
        with open(disk / "filler", "wb") as file:
            file.write(bytes(1 << 20))
        fails(space.require_writable)
        """,
    )
    assert "the disk is full (0 MiB are free there" in said


def test_a_limit_on_the_size_of_files_is_no_full_disk(tmp_path):
    said = on_small_disk(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        fails(write_text, space.report / "report.html", "x" * 20_000)
        assert left() == []
        """,
    )
    assert "ulimit -f" in said


@pytest.mark.parametrize("name", [".", "results/base", "models"])
def test_a_folder_this_user_may_not_write_is_found_before_anything_starts(tmp_path, name):
    script = tmp_path / "script.py"
    script.write_text(PRELUDE + "fails(space.require_writable)")
    folder = tmp_path / "disk" / "p" / name
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    # root may write everywhere: as another user of a namespace it may not
    other = ["unshare", "--user", "--map-user=65534"] if os.geteuid() == 0 else []
    if other and subprocess.run([*other, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may write everywhere, and cannot be another user here")
    said = subprocess.run(
        [*other, sys.executable, script, tmp_path / "disk"],
        capture_output=True,
        text=True,
        check=False,
    )
    folder.chmod(0o755)
    assert said.returncode == 0, said.stderr
    assert f"The folder {folder} cannot be written: Permission denied." in said.stdout
