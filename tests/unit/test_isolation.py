import json
import os
import socket
import subprocess
import sys

import psutil
import pytest
from support.isolation import isolated, namespaces_allowed

pytestmark = pytest.mark.skipif(
    not namespaces_allowed(), reason="this machine allows no user namespaces"
)

REACH = """
import json, socket, sys
def outcome(action):
    try:
        return action() or "reached"
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
def connect(host, port):
    socket.create_connection((host, port), timeout=5).close()
def within(family, address):
    with socket.socket(family) as server:
        server.bind((address, 0)); server.listen()
        with socket.create_connection(server.getsockname()[:2], timeout=5):
            return "reached"
print(json.dumps({
    "interfaces": [name for _, name in socket.if_nameindex()],
    "loopback": outcome(lambda: within(socket.AF_INET, "127.0.0.1")),
    "outside's loopback": outcome(lambda: connect("127.0.0.1", int(sys.argv[1]))),
    "elsewhere": outcome(lambda: connect("192.0.2.1", 80)),
    "a datagram": outcome(lambda: socket.socket(type=socket.SOCK_DGRAM).connect(("192.0.2.1", 53))),
    "a name": outcome(lambda: socket.getaddrinfo("example.org", 443) and None),
}))
"""


def test_nothing_but_its_own_loopback_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = str(outside.getsockname()[1])
        command = [sys.executable, "-c", REACH, port]
        free = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        shut = json.loads(subprocess.run(isolated(command), capture_output=True, check=True).stdout)
    assert free["outside's loopback"] == "reached", "else the next assertion would prove nothing"
    assert shut["outside's loopback"].startswith("ConnectionRefusedError")
    assert shut["interfaces"] == ["lo"]
    assert shut["loopback"] == "reached"
    unreachable = f"OSError {101}"  # ENETUNREACH
    assert shut["elsewhere"] == unreachable and shut["a datagram"] == unreachable
    assert shut["a name"].startswith("gaierror")


def test_the_process_is_the_command_and_can_be_seen_and_killed_from_outside():
    script = "import time; print('ready', flush=True); time.sleep(60)"
    command = isolated([sys.executable, "-c", script])
    environment = {**os.environ, "MODEL_SERVE_FLOW_RUN": "mark"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        process = psutil.Process(child.pid)
        assert process.cmdline() == [sys.executable, "-c", script]
        assert process.environ()["MODEL_SERVE_FLOW_RUN"] == "mark"
        process.kill()
        assert child.wait(10) == -9


def test_files_of_the_user_are_read_and_written_as_outside(tmp_path):
    private = tmp_path / "private"
    private.write_text("text")
    private.chmod(0o600)
    subprocess.run(isolated(["cp", str(private), str(tmp_path / "copy")]), check=True)
    assert (tmp_path / "copy").read_text() == "text"
    assert (tmp_path / "copy").stat().st_uid == os.getuid()


def test_exit_status_and_output_are_those_of_the_command():
    done = subprocess.run(
        isolated(["sh", "-c", "echo out; exit 7"]), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (7, "out\n")
