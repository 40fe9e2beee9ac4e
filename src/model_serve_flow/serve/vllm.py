"""The command line and the environment variables with which vLLM is started."""

from __future__ import annotations

import sys
from pathlib import Path

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.system import environments
from model_serve_flow.system.hardware import usable_cores

SERVER_MODULE = "model_serve_flow.serve.vllm_main"  # vLLM's own, but its engine ends with it
ACCURACY = "accuracy"  # purpose of the servers that answer questions
# tokens that must be alike to be shared: as few as vLLM's attention on a CPU takes (default: 128)
CPU_BLOCK = 32


def engine_arguments(config: FlowConfig, purpose: str = "serve") -> list[str]:
    """The vLLM flags of the profile: the same for every model,
    and for performance as when deployed.

    Args:
        config: the profile.
        purpose: what the server is for. With "accuracy" it has a prefix cache, because questions
            begin alike; with any other it has none.
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
    else:
        # GuideLLM repeats its prompts from one load point to the next: a prefix cache would serve
        # the later ones for free.
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
    """The environment variables vLLM needs: no usage statistics, no hub, no compiler if eager,
    and its CPU settings.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    if config.engine.enforce_eager:
        # vLLM compiles a function of its log-probabilities all the same: with a C++ compiler, and
        # for 26 s.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    if config.device == "cpu":
        variables |= environments.variables_in_force()
        # vLLM keeps one core for its front end by default: of two cores that would leave one to
        # compute on.
        variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
        if config.engine.kv_cache_gib is not None:
            variables["VLLM_CPU_KVCACHE_SPACE"] = str(config.engine.kv_cache_gib)
        if config.engine.in_process_worker:
            # vLLM allows that worker on a CPU only with this variable, because it cannot set the
            # threads then: we do.
            variables |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "OMP_NUM_THREADS": str(usable_cores()),
            }
    return variables


def serve_command(
    config: FlowConfig, folder: Path, name: str, port: int, purpose: str = "serve"
) -> list[str]:
    """The command line that serves the checkpoint in `folder` under `name`;
    the API key is not on it.
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
