"""Builds the command line and the environment variables of a vLLM server."""

from __future__ import annotations

import sys
from pathlib import Path

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.system import environments
from model_serve_flow.system.hardware import usable_cores

SERVER_MODULE = "model_serve_flow.serve.vllm_main"  # vLLM's, with an engine that ends with it
ACCURACY = "accuracy"  # purpose of servers that answer evaluation requests
DEPLOY = "deploy"  # purpose of servers as users will ask them
# tokens in a block of the prefix cache: the fewest that vLLM's CPU attention takes (default: 128)
CPU_BLOCK = 32


def engine_arguments(config: FlowConfig, purpose: str = "serve") -> list[str]:
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
    config: FlowConfig, folder: Path, name: str, port: int, purpose: str = "serve"
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
