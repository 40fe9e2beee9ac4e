"""Serves a GGUF file by llama.cpp's own server: `python -m … llama_cpp FILE --port 8002`.

It needs the environment `predictors`. The API key is taken from SERVING_FROM_SCRATCH_API_KEY.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--name", default="llama", help="Of the model, as clients say it.")
    parser.add_argument("--places", type=int, default=4, help="Requests that run at once.")
    parser.add_argument("--length", type=int, default=2048, help="Tokens of prompt and answer.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not options.file.is_file():
        sys.exit(f"{options.file} is missing. It should be a GGUF file.")
    # Threads that wait must not spin on a core that others need; OpenMP reads this when it loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = xllamacpp.Server(set_parameters(xllamacpp.CommonParams(), options))
    print(f"Serving {options.name} at {server.listening_address}", flush=True)
    signal.sigwait(stop)
    os._exit(0)  # the C++ threads have nothing to save


def set_parameters(params: Any, options: argparse.Namespace) -> Any:
    """Sets llama.cpp's parameters from the command line."""
    params.model.path = str(options.file)
    params.model_alias = {options.name}  # else the file's path is the model's public name
    params.port = options.port
    params.api_keys = [key] if (key := os.environ.get("SERVING_FROM_SCRATCH_API_KEY")) else []
    params.n_parallel, params.n_ctx = options.places, options.places * options.length
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.ui = params.endpoint_slots = False
    params.verbosity = 1
    return params


if __name__ == "__main__":
    main()
