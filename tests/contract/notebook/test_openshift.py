"""A workbench of OpenShift AI, imitated: a user id without a name, in group 0, whose volume is the
only place that can be written.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.isolation import namespaces_allowed
from support.profiles import CI

USER = 1000660000
READ_ONLY = """
mount --bind "$VOLUME" "$VOLUME"
mount -o remount,bind,ro /
for folder in $(cut -d' ' -f2 /proc/mounts); do
    case "$folder" in "$VOLUME" | /proc* | /sys* | /dev*) continue ;; esac
    mount -o remount,bind,ro "$folder" 2>/dev/null
done
exec unshare --user --map-user=$USER_ID --map-group=0 -- "$@"
"""

pytestmark = pytest.mark.skipif(
    not namespaces_allowed(), reason="this machine allows no user namespaces"
)


@pytest.fixture
def volume():
    """A folder with a short name, as a volume has: sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="pvc-", dir="/tmp") as folder:
        yield Path(folder)


def workbench(volume, *command, **variables):
    """Runs a command where only the volume can be written."""
    kept = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    environment = {**kept, "VOLUME": str(volume), "USER_ID": str(USER), **variables}
    place = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c", READ_ONLY, "sh"]
    return subprocess.run(
        [*place, *command], env=environment, capture_output=True, text=True, check=False
    )


def test_the_place_is_as_bad_as_it_says(volume):
    code = "import os, pwd, sys; print(os.getuid(), os.getgid()); pwd.getpwuid(os.getuid())"
    done = workbench(volume, sys.executable, "-c", code)
    assert done.stdout == f"{USER} 0\n" and "uid not found" in done.stderr
    assert workbench(volume, "touch", "/tmp/x").returncode != 0
    assert workbench(volume, "touch", str(volume / "x")).returncode == 0


@pytest.mark.parametrize("home", ["", "/nonexistent", "/"])
def test_the_flow_uses_the_volume_for_what_it_must_write(volume, home):
    command = [sys.executable, "-m", "model_serve_flow.cli", "doctor", "--profile", CI]
    places = {"HOME": home, "MODEL_SERVE_FLOW_ARTIFACTS": str(volume / "artifacts")}
    done = workbench(volume, *command, **places)
    assert f"Profile {CI}" in done.stdout and "Traceback" not in done.stderr, done.stderr
    assert (volume / "artifacts" / ".home").is_dir()
    assert (volume / "artifacts" / ".tmp").is_dir()


def test_without_a_volume_the_variable_to_set_is_named(volume):
    command = [sys.executable, "-m", "model_serve_flow.cli", "plan", "--profile", CI]
    elsewhere = {"HOME": "/nonexistent", "MODEL_SERVE_FLOW_ARTIFACTS": "/opt"}
    done = workbench(volume, *command, **elsewhere)
    assert done.returncode == 1 and "Set TMPDIR to a folder that you can write" in done.stderr
