"""Starts an engine as a child process, waits until it answers, and always stops it."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.manifest import update_manifest
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.serve.engine import SERVE, Engine, Inherited
from model_serve_flow.serve.engines import engine_of
from model_serve_flow.serve.server import Server, ServerGone, evidence
from model_serve_flow.serve.watchdog import watched
from model_serve_flow.system import environments, live, processes
from model_serve_flow.system.hardware import free_port
from model_serve_flow.system.settings import settings
from model_serve_flow.system.variables import variable

# marks every process of one server, even if its parent is gone
SERVER_VARIABLE = variable("server")
# libraries of tables and charts
SHOWING = ("pandas", "matplotlib.figure", "matplotlib.backends.backend_svg")
STOP_SECONDS = 20
LEFTOVER_SECONDS = 2
GONE_SECONDS = 10  # an engine that lost one of its processes takes this long to end


def api_key(config: FlowConfig) -> str:
    """Returns the key that clients must send: `MODEL_SERVE_FLOW_API_KEY`, or a new key.

    Raises:
        FlowError: other machines could reach the server and no key is set, or the key is shorter
            than 16 characters.
    """
    given = settings().api_key
    if given is None and not config.engine.is_loopback:
        raise FlowError(
            f"engine.host is {config.engine.host}: other machines could reach the server, and no "
            "key is set.",
            f"Set {variable('api_key')} (openssl rand -hex 32 makes one), or keep 127.0.0.1.",
        )
    return given.get_secret_value() if given else secrets.token_urlsafe(32)


@contextlib.contextmanager
def serve(
    flow: Flow,
    name: str,
    *,
    purpose: str = SERVE,
    port: int | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[Server]:
    """Serves the model called `name` ('base' or a candidate) until the block ends.

    Args:
        flow: the profile and its workspace.
        name: 'base' or a candidate's name.
        purpose: chooses the engine's arguments (`Engine.arguments`), and is part of the log's name.
        port: TCP port; None: a free port.
        meanwhile: called while the server starts, which takes one core for most of a minute.

    Raises:
        FlowError: the port is taken; the engine is not installed; the engine ended while starting
            or did not answer in time (the message shows its last log lines); or other machines
            could reach the server without a key.
        ServerGone: the server ended before the block did, or hung for
            `engine.unresponsive_seconds`.
    """
    started = _launch(flow, name, purpose, port)
    try:
        _wait_until_ready([started], flow.config.engine.startup_seconds, meanwhile)
        with _supervised(flow, started.server()) as server:
            yield server
    finally:
        started.stop()


@contextlib.contextmanager
def serve_each(
    flow: Flow,
    names: Iterable[str],
    *,
    purpose: str = SERVE,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[Iterator[Server]]:
    """Iterates over running servers, and stops each server when its turn is over.

    Usage: `with serve_each(flow, names) as servers:`. Each server starts when its turn comes,
    because a GPU's memory holds one. With `engine.start_together` all start at once. Starting is
    importing on one core, and a server without requests does not slow down the others.

    Args:
        flow: the profile and its workspace.
        names: 'base' or names of candidates.
        purpose, meanwhile: as for `serve`.

    Raises:
        FlowError: as `serve`. No server is left when the block ends.
    """
    with contextlib.ExitStack() as servers:
        yield _turns(flow, names, purpose, meanwhile, servers)


def _turns(
    flow: Flow,
    names: Iterable[str],
    purpose: str,
    meanwhile: Callable[[], object] | None,
    servers: contextlib.ExitStack,
) -> Iterator[Server]:
    """Yields the servers one after the other; `servers` stops those that still run at the end."""
    seconds, waiting = flow.config.engine.startup_seconds, list(names)
    together: dict[str, _Started] = {}
    if flow.config.engine.start_together:
        for name in waiting:
            port = free_port({started.port for started in together.values()})
            together[name] = _launch(flow, name, purpose, port)
            servers.callback(together[name].stop)
        _wait_until_ready(list(together.values()), seconds, meanwhile)
    for name in waiting:
        with contextlib.ExitStack() as turn:
            servers.push(turn.__exit__)
            started = together.get(name) or _launch(flow, name, purpose)
            turn.callback(started.stop)
            _wait_until_ready([started], seconds, None if together else meanwhile)
            yield turn.enter_context(_supervised(flow, started.server()))


@contextlib.contextmanager
def _supervised(flow: Flow, server: Server) -> Iterator[Server]:
    """Kills the server if it hangs; if the block fails because the server ended, reports that."""
    try:
        with watched(server, flow.config.engine.unresponsive_seconds):
            yield server
    except ServerGone:
        raise
    except Exception:
        _await_end(server)
        server.require_alive()  # raises ServerGone, with the original error as its context
        raise


def _await_end(server: Server) -> None:
    """Gives a failing server time to end, so that its end is reported as the cause."""
    deadline = time.monotonic() + GONE_SECONDS
    while server.exit_status() is None and time.monotonic() < deadline:
        if _is_healthy(server.url, server.engine):
            return
        time.sleep(0.5)


def _is_healthy(url: str, engine: Engine) -> bool:
    """Checks whether the server answers its health check; vLLM does not if its core is dead."""
    with contextlib.suppress(httpx.TransportError):
        # trust_env: requests to the loopback address must not go through the machine's proxy.
        return httpx.get(url + engine.health, timeout=5, trust_env=False).is_success
    return False


@dataclass
class _Started:
    """The process of a server that may not answer yet."""

    engine: Engine
    name: str
    api_key: str = field(repr=False)
    mark: str
    folder: Path
    log: Path
    host: str
    port: int
    child: subprocess.Popen[bytes]
    scratch: tempfile.TemporaryDirectory[str]
    launched: float
    arguments: tuple[str, ...]
    start_seconds: float | None = None

    @property
    def url(self) -> str:
        # clients cannot connect to these listening addresses
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{everywhere.get(self.host, host)}:{self.port}"

    def server(self) -> Server:
        """Returns the server; call only after it answered."""
        assert self.start_seconds is not None
        process = psutil.Process(self.child.pid)
        return Server(
            self.url,
            self.name,
            self.api_key,
            self.folder,
            self.log,
            process,
            self.start_seconds,
            self.child.poll,
            arguments=self.arguments,
            engine=self.engine,
        )

    def answers(self) -> bool:
        """Checks whether the server has answered its health check.

        Raises:
            FlowError: the process ended.
        """
        if self.start_seconds is not None:
            return True
        if self.child.poll() is not None:
            raise FlowError(
                f"{self.engine.name} ended with exit code {self.child.returncode} while starting. "
                f"{evidence(self.engine, self.log)}",
                f"\nThe whole log: {self.log}",
            )
        if _is_healthy(self.url, self.engine):
            self.start_seconds = time.monotonic() - self.launched
        return self.start_seconds is not None

    def stop(self) -> None:
        """Asks the server to end, and kills its remaining processes; may be called again."""
        if self.child.poll() is None:
            self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(STOP_SECONDS)
        # If the server was killed, its engine's processes still run and have no parent. So they are
        # found by their mark.
        processes.end(lambda: processes.marked(SERVER_VARIABLE, self.mark.__eq__), LEFTOVER_SECONDS)
        self.child.wait()
        self.scratch.cleanup()


def _launch(flow: Flow, name: str, purpose: str, port: int | None = None) -> _Started:
    """Starts the server's process; the caller stops it."""
    config, folder = flow.config, flow.workspace.model(name)
    engine, host, key = engine_of(config), config.engine.host, api_key(config)
    if not folder.is_dir():
        raise FlowError(f"There is no model folder {folder}.", RERUN)
    engine.require_installed()
    port = port or free_port()
    require_free(port, host)
    log = flow.workspace.logs / f"{engine.name.lower()}-{purpose}-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # vLLM does not delete its sockets and a file in the temporary folder. The folder's name is
    # short, because a socket's path may have at most 107 bytes.
    scratch = tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True)
    given = engine.inherited(os.environ)
    ours = {**environments.variables_in_force(), **engine.variables()}
    _tell(flow, engine, f"{purpose}-{name}", given, ours)
    mark = uuid.uuid4().hex
    own = {**engine.keyed(key), SERVER_VARIABLE: mark, "TMPDIR": scratch.name}
    # for the clients in this process and in its children
    os.environ.update(environments.direct(host))
    command = engine.command(folder, name, port, purpose)
    launched = time.monotonic()
    child = _start(command, {**given.passed, **ours, **own, **processes.KEEP_READABLE}, log)
    started = (child, scratch, launched, engine.arguments(purpose))
    return _Started(engine, name, key, mark, folder, log, host, port, *started)


def _start(command: Sequence[str], variables: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as sink:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            preexec_fn=processes.end_with_parent,
        )


def _tell(flow: Flow, engine: Engine, name: str, given: Inherited, ours: dict[str, str]) -> None:
    """Records the server's variables in the manifest, and prints those that do not reach it."""
    record = {"variables": {**given.recorded, **ours}, "not_handed_on": list(given.dropped)}
    update_manifest(flow.workspace, servers={name: record})
    if given.dropped:
        print(
            f"Not handed on to {engine.name}, which would be served otherwise or not at all: "
            f"{', '.join(given.dropped)}"
        )


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Checks that nothing listens on the port.

    Raises:
        FlowError: the port is in use.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FlowError(
                f"Port {port} is in use on {host}.", "Stop what listens there, or choose another."
            ) from error


def _wait_until_ready(
    servers: Sequence[_Started], seconds: int, meanwhile: Callable[[], object] | None = None
) -> None:
    engine = servers[0].engine
    what = f"{', '.join(server.name for server in servers)}: {engine.name} starts"
    live.report(what, 0, 0)
    if meanwhile is not None:
        meanwhile()
    # Imports now what later cells need, because the start of the server leaves a core free.
    for module in SHOWING:
        importlib.import_module(module)
    deadline, unready = time.monotonic() + seconds, list(servers)
    while time.monotonic() < deadline:
        unready = [server for server in servers if not server.answers()]
        if not unready:
            live.report(what, 1, 1)
            return
        time.sleep(0.5)
    log = unready[0].log
    raise FlowError(
        f"{engine.name} did not answer within {seconds} s. "
        f"{evidence(engine, log, by_itself=False)}",
        f"\nThe whole log: {log}. A slow machine needs more: --set "
        f"engine.startup_seconds={2 * seconds}.",
    )
