"""vLLM as a child process: `with serve(flow, "base") as server:` starts, waits, and always stops it."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from model_serve_flow import environments, live, processes
from model_serve_flow.config import FlowConfig
from model_serve_flow.engine_log import root_cause
from model_serve_flow.engine_variables import PREFIX, Inherited, compile_caches, inherited
from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.kernels import logged_kernels
from model_serve_flow.machine import free_port, usable_cores
from model_serve_flow.manifest import update_manifest
from model_serve_flow.results import EngineFacts
from model_serve_flow.watchdog import watched

SERVER_MODULE = "model_serve_flow.engine"  # vLLM's own, but its engine ends with it
KEY_VARIABLE = "MODEL_SERVE_FLOW_API_KEY"
SERVER_VARIABLE = "MODEL_SERVE_FLOW_SERVER"  # marks every process of one server, also when its parent is gone
LEAST_KEY_LENGTH = 16
ACCURACY = "accuracy"  # purpose of the servers that answer questions
CPU_BLOCK = 32  # tokens that must be alike to be shared: as few as vLLM's attention on a CPU takes (default: 128)
SHOWING = ("pandas", "matplotlib.figure", "matplotlib.backends.backend_svg")  # what tables and charts are made with
LOG_TAIL_LINES = 25
LINES_BESIDE_A_CAUSE = 3
STOP_SECONDS = 20
LEFTOVER_SECONDS = 2
GONE_SECONDS = 10  # an engine that lost a process of its own takes this long to end

_VERSION = re.compile(r"LLM engine \(v([^)]+)\)")
_QUANTIZATION = re.compile(r"[ ,(]quantization=([\w-]+)")
_DTYPE = re.compile(r"[ ,(]dtype=torch\.(\w+)")
_KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
_OUR_LOOK = re.compile(r'"GET /(?:health|metrics) HTTP')


def engine_arguments(config: FlowConfig, purpose: str = "serve") -> list[str]:
    """The vLLM flags of the profile: the same for every model, and for performance as when deployed.

    Args:
        config: the profile.
        purpose: what the server is for. With "accuracy" it has a prefix cache, because questions begin
            alike; with any other it has none.
    """
    engine = config.engine
    arguments = ["--max-model-len", str(engine.max_model_len), "--dtype", engine.dtype, "--seed", str(config.seed)]
    if purpose == ACCURACY:
        arguments.append("--enable-prefix-caching")
        if config.device == "cpu":
            arguments += ["--block-size", str(CPU_BLOCK)]
    else:
        # GuideLLM repeats its prompts from one load point to the next: a prefix cache would serve the
        # later ones for free.
        arguments.append("--no-enable-prefix-caching")
    if engine.enforce_eager:
        arguments.append("--enforce-eager")
    if config.device == "cpu" and engine.in_process_worker:
        arguments += ["--distributed-executor-backend", "uni"]
    if engine.tensor_parallel > 1:
        arguments += ["--tensor-parallel-size", str(engine.tensor_parallel)]
    if engine.pipeline_parallel > 1:
        arguments += ["--pipeline-parallel-size", str(engine.pipeline_parallel)]
    if engine.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if config.model.trust_remote_code:
        arguments.append("--trust-remote-code")
    return [*arguments, *engine.extra_arguments]


def engine_environment(config: FlowConfig) -> dict[str, str]:
    """The environment variables vLLM needs: no usage statistics, no hub, no compiler if eager, and its CPU settings."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if config.engine.enforce_eager:
        # vLLM compiles a function of its log-probabilities all the same: with a C++ compiler, and for 26 s.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    if config.device == "cpu":
        variables |= environments.variables_in_force()
        # vLLM keeps one core for its front end by default: of two cores that would leave one to compute on.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if config.engine.kv_cache_gib is not None:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        if config.engine.in_process_worker:
            # vLLM allows that worker on a CPU only with this variable, because it cannot set the threads then: we do.
            variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(usable_cores())}
    return variables


def serve_command(config: FlowConfig, folder: Path, name: str, port: int, purpose: str = "serve") -> list[str]:
    """The command line that serves the checkpoint in `folder` under `name`; the API key is not on it."""
    where = ["--model", str(folder), "--served-model-name", name, "--host", config.engine.host, "--port", str(port)]
    return [sys.executable, "-m", SERVER_MODULE, *where, *engine_arguments(config, purpose)]


def api_key(config: FlowConfig) -> str:
    """The key clients must send: that of the environment (`MODEL_SERVE_FLOW_API_KEY`), else a new one.

    Raises:
        FlowError: the server would be reached from elsewhere and no key is set, or it is shorter than 16 characters.
    """
    given = os.environ.get(KEY_VARIABLE, "")
    if given and len(given) < LEAST_KEY_LENGTH:
        raise FlowError(
            f"{KEY_VARIABLE} has {len(given)} characters, at least {LEAST_KEY_LENGTH} are needed.",
            "Make one: openssl rand -hex 32.",
        )
    if not given and not _is_loopback(config.engine.host):
        raise FlowError(
            f"engine.host is {config.engine.host}: other machines could reach the server, and no key is set.",
            f"Set {KEY_VARIABLE} (openssl rand -hex 32 makes one), or keep 127.0.0.1.",
        )
    return given or secrets.token_urlsafe(32)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


class ServerGone(FlowError):
    """The engine ended, or hung and was ended, while it was needed."""


@dataclass(frozen=True)
class Server:
    """A running vLLM: where it listens, what it serves, and what its log says.

    Attributes:
        api_key: sent by every client; kept out of what is printed of a server.
        exit_status: of the process, as `subprocess.Popen.poll` gives it.
        hung: set when the watchdog ended it.
        arguments: those of `engine_arguments` that it was started with; none: not known.
    """

    url: str
    model_name: str
    api_key: str = field(repr=False)
    folder: Path
    log: Path
    process: psutil.Process
    start_seconds: float
    exit_status: Callable[[], int | None] = field(default=lambda: None, repr=False)
    hung: threading.Event = field(default_factory=threading.Event, repr=False)
    arguments: tuple[str, ...] | None = None

    def client(self, timeout: float | None = 120.0) -> httpx.Client:
        """An HTTP client of this server that carries its key; the caller closes it."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def require_alive(self) -> None:
        """ServerGone, with the cause as its log gives it, if the server ended or was ended because it hung."""
        status = self.exit_status()
        if status is None and not self.hung.is_set():
            return
        if self.hung.is_set():
            problem = "hung: it owed a token and made no progress (engine.unresponsive_seconds), and was ended"
        elif status < 0:
            problem = f"was ended by signal {-status} ({signal.Signals(-status).name}) while it was needed"
        else:
            problem = f"ended with exit code {status} while it was needed"
        raise ServerGone(
            f"vLLM {problem}. {_evidence(self.log, by_itself=status is not None and status >= 0)}",
            f"\nThe whole log: {self.log}. What was finished is kept: run again to go on.",
        )

    def facts(self) -> EngineFacts:
        """What the engine says it did, and its peak memory until now.

        Raises:
            FlowError: the log does not name the engine's version, so it cannot be trusted to name its kernels.
        """
        text = self.log.read_text(encoding="utf-8", errors="replace")
        version = _VERSION.search(text)
        if version is None:
            raise FlowError(f"{self.log} does not name the engine's version.", "Is it vLLM's log?")
        quantization = _QUANTIZATION.search(text)
        dtype = _DTYPE.search(text)
        cache = _KV_CACHE.search(text)
        return EngineFacts(
            version=version[1],
            quantization=None if quantization is None or quantization[1] == "None" else quantization[1],
            dtype=dtype[1] if dtype else None,
            kernels=logged_kernels(text),
            kv_cache_tokens=int(cache[1].replace(",", "")) if cache else None,
            start_seconds=self.start_seconds,
            peak_memory_bytes=processes.peak_memory(processes.family(self.process.pid)),
        )


@contextlib.contextmanager
def serve(
    flow: Flow,
    name: str,
    *,
    purpose: str = "serve",
    port: int | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[Server]:
    """Serves the model called `name` ('base' or a candidate) with vLLM until the block ends.

    Args:
        purpose: chooses the engine's arguments (`engine_arguments`), and is part of the log's file name.
        port: a free one is chosen if not given.
        meanwhile: called while the server starts, which keeps one core busy for most of a minute.

    Raises:
        FlowError: the port is taken, the engine is not installed, it died while starting or did not answer in time
            (its last log lines are shown), or other machines could reach it without a key.
        ServerGone: it ended, or hung for `engine.unresponsive_seconds`, before the block did.
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
    flow: Flow, names: Iterable[str], *, purpose: str = "serve", meanwhile: Callable[[], object] | None = None
) -> Iterator[Iterator[Server]]:
    """`with serve_each(flow, names) as servers:` iterates over running servers, each stopped when its turn is over.

    Each starts when its turn comes, because a GPU's memory holds one; with `engine.start_together` all start at once:
    starting is importing on one core, and a server without requests takes no time of those that have some.

    Raises:
        FlowError: as `serve`; whichever model it is of, no server is left when the block ends.
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
    """The servers one after the other; `servers` ends the one whose turn it is, and those that wait, with the block."""
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
    """Ends the server if it hangs; whatever fails because the server is gone, is reported as that."""
    try:
        with watched(server, flow.config.engine.unresponsive_seconds):
            yield server
    except ServerGone:
        raise
    except Exception:
        _await_end(server)
        server.require_alive()  # raises in the place of what failed, which stays its context
        raise


def _await_end(server: Server) -> None:
    """Gives a server that does not answer well the time to end, so that its end can be told from another failure."""
    deadline = time.monotonic() + GONE_SECONDS
    while server.exit_status() is None and time.monotonic() < deadline:
        if _is_healthy(server.url):
            return
        time.sleep(0.5)


def _is_healthy(url: str) -> bool:
    """Whether the server answers its health check; vLLM does not once its engine is dead."""
    with contextlib.suppress(httpx.TransportError):
        # trust_env: a proxy of the machine must not come between us and its own loopback address.
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    return False


@dataclass
class _Started:
    """A server's process, which may not answer yet."""

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
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # addresses to listen on, not to connect to
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{everywhere.get(self.host, host)}:{self.port}"

    def server(self) -> Server:
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
        )

    def answers(self) -> bool:
        """Whether it is ready, now or before; FlowError if it ended."""
        if self.start_seconds is not None:
            return True
        if self.child.poll() is not None:
            raise FlowError(
                f"vLLM ended with exit code {self.child.returncode} while starting. {_evidence(self.log)}",
                f"\nThe whole log: {self.log}",
            )
        if _is_healthy(self.url):
            self.start_seconds = time.monotonic() - self.launched
        return self.start_seconds is not None

    def stop(self) -> None:
        """Asks the server to end, and kills whatever of its processes is left; may be called again."""
        if self.child.poll() is None:
            self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(STOP_SECONDS)
        # A process of the engine outlives a server that was killed, and is nobody's child then.
        processes.end(lambda: processes.marked(SERVER_VARIABLE, self.mark.__eq__), LEFTOVER_SECONDS)
        self.child.wait()
        self.scratch.cleanup()


def _launch(flow: Flow, name: str, purpose: str, port: int | None = None) -> _Started:
    """Starts the server's process; the caller stops it."""
    folder, host, key = flow.workspace.model(name), flow.config.engine.host, api_key(flow.config)
    if not folder.is_dir():
        raise FlowError(f"There is no model folder {folder}.", RERUN)
    port = port or free_port()
    require_free(port, host)
    log, mark = flow.workspace.logs / f"vllm-{purpose}-{name}.log", uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    # vLLM leaves sockets and a file in the temporary folder. The name is short: that of a socket may have 107 bytes.
    scratch = tempfile.TemporaryDirectory(prefix="vllm-", ignore_cleanup_errors=True)
    own = {"VLLM_API_KEY": key, SERVER_VARIABLE: mark, "TMPDIR": scratch.name, **processes.KEEP_READABLE}
    given, ours = inherited(os.environ), _own_variables(flow.config)
    _tell(flow, f"{purpose}-{name}", given, ours)
    os.environ.update(environments.direct(host))  # for the clients in this process, and those that it starts
    launched = time.monotonic()
    with log.open("wb") as sink:
        child = subprocess.Popen(
            serve_command(flow.config, folder, name, port, purpose),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**given.passed, **ours, **own},
            start_new_session=True,
            preexec_fn=processes.end_with_parent,
        )
    arguments = tuple(engine_arguments(flow.config, purpose))
    return _Started(name, key, mark, folder, log, host, port, child, scratch, launched, arguments)


def _own_variables(config: FlowConfig) -> dict[str, str]:
    """What the flow sets for every server, secrets and marks apart."""
    readable = {"VLLM_LOGGING_COLOR": "0"}  # also where the user forces colours
    return {**environments.variables_in_force(), **readable, **engine_environment(config), **compile_caches(config)}


def _tell(flow: Flow, name: str, given: Inherited, ours: dict[str, str]) -> None:
    """Records in the manifest which variables the server has beside the surrounding ones, and says which it lacks."""
    engine = {key: value for key, value in given.passed.items() if key.startswith(PREFIX)}
    record = {"variables": {**engine, **ours}, "not_handed_on": list(given.dropped)}
    update_manifest(flow.workspace, servers={name: record})
    if given.dropped:
        print(f"Not handed on to vLLM, which would be served otherwise or not at all: {', '.join(given.dropped)}")


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """FlowError if something listens on the port of that address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FlowError(
                f"Port {port} is in use on {host}.", "Stop what listens there, or choose another."
            ) from error


def _evidence(log: Path, *, by_itself: bool = True) -> str:
    """Why vLLM ended, first; its last log lines, and more of them where the log does not say why."""
    cause = root_cause(log.read_text(encoding="utf-8", errors="replace"), ended_by_itself=by_itself)
    if cause is None:
        return f"Its last log lines:\n{log_tail(log)}"
    return f"The cause:\n{cause}\nIts last log lines:\n{log_tail(log, LINES_BESIDE_A_CAUSE)}"


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log, without those that only say that we looked whether the server is well."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join([line for line in text.splitlines() if not _OUR_LOOK.search(line)][-lines:])


def _wait_until_ready(servers: Sequence[_Started], seconds: int, meanwhile: Callable[[], object] | None = None) -> None:
    what = f"{', '.join(server.name for server in servers)}: vLLM starts"
    live.report(what, 0, 0)
    if meanwhile is not None:
        meanwhile()
    for module in SHOWING:  # the cells after the measurement need them; the start leaves a core free
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
        f"vLLM did not answer within {seconds} s. {_evidence(log, by_itself=False)}",
        f"\nThe whole log: {log}. A slow machine needs more: --set engine.startup_seconds={2 * seconds}.",
    )
