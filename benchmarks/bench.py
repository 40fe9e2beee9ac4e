"""Times `make demo` twice in a fresh clone: from nothing, and with all environments in place.

`make bench` writes `docs/benchmarks/<profile>.json` and prints it. It takes half an hour, and
longer without AVX-512. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from provenance import ROOT, provenance

from model_serve_flow.flow.default_profile import default_profile
from model_serve_flow.flow.flow import Flow
from model_serve_flow.system.checkout import MODULES
from model_serve_flow.system.files import read_json, write_json

TOOL_CELLS = ("serve(flow", "serve_each(flow", "compress_apart(flow", "sample_apart(flow")


class Memory:
    """Samples the peak memory of a process and all its descendants, in bytes.

    It adds up proportional set sizes, which count shared pages once.
    """

    def __init__(self, pid: int) -> None:
        self.peak, self.process, self.ended = 0, psutil.Process(pid), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.ended.wait(2):
            self.peak = max(self.peak, sum(map(self._size, self._family())))

    def _family(self) -> list[psutil.Process]:
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def _size(process: psutil.Process) -> int:
        try:
            return process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Runs a command and measures its wall time and the peak memory of its process tree.

    Returns:
        `seconds`, and `peak_gib` of the command and its descendants.

    Raises:
        CalledProcessError: the command failed.
    """
    started = time.monotonic()
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("MODEL_SERVE_FLOW")
    }
    environment["MODEL_SERVE_FLOW_CACHE"] = str(folder.parent / "cache")
    with subprocess.Popen(command, cwd=folder, env=environment) as child:
        memory = Memory(child.pid)
        memory.thread.start()
        status = child.wait()
        memory.ended.set()
        memory.thread.join()
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "peak_gib": round(memory.peak / 2**30, 2),
    }


def in_tool_cells(flow: Flow) -> float:
    """Adds up the seconds of the notebook cells in which the tools work.

    These cells serve with vLLM (lm-eval and GuideLLM run inside them) or use llm-compressor.
    """
    cells = [
        cell
        for path in flow.workspace.notebooks.glob("*.ipynb")
        for cell in read_json(path)["cells"]
    ]
    tools = [
        cell
        for cell in cells
        if cell["cell_type"] == "code"
        and any(map("".join(cell["source"]).__contains__, TOOL_CELLS))
    ]
    return sum(cell["metadata"]["papermill"]["duration"] for cell in tools)


def in_tools(flow: Flow) -> dict[str, float]:
    """Reads the seconds of vLLM's start, lm-eval, GuideLLM and llm-compressor from the results."""
    accuracy = [
        flow.workspace.accuracy(name) for name in ("base", *(c.name for c in flow.candidates))
    ]
    distributions = [flow.workspace.distribution(result.model.name) for result in accuracy]
    performance = [flow.workspace.performance(result.model.name) for result in accuracy]
    return {
        "vllm_start": sum(result.engine.start_seconds for result in [*accuracy, *performance]),
        "lm_eval": sum(result.seconds for result in [*accuracy, flow.workspace.accuracy_again()]),
        "distributions": sum(
            r.seconds for r in [*distributions, flow.workspace.distribution_again()]
        ),
        "guidellm": sum(result.seconds for result in performance),
        "llm_compressor": sum(flow.workspace.compression(c.name).seconds for c in flow.candidates),
    }


def measure(folder: Path, profile: str) -> dict[str, Any]:
    """Runs `make demo` twice in a fresh clone of HEAD and measures both runs.

    The first run builds the environments and fills the cache. The second finds both and makes all
    artifacts anew. The breakdown by step and tool is of the second run.
    """
    if changes := subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT, text=True):
        raise SystemExit(
            f"A clone holds what is committed; commit or stash these first:\n{changes}"
        )
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    demo = ["make", "demo", f"PROFILE={profile}"]
    fresh = timed(demo, folder)
    fresh["outside_the_tools_percent"] = breakdown(folder, profile)["outside_the_tools_percent"]
    shutil.rmtree(folder / "artifacts")
    again = timed(demo, folder)
    return {"fresh_clone": fresh, "environments_in_place": again, **breakdown(folder, profile)}


def breakdown(folder: Path, profile: str) -> dict[str, Any]:
    """Splits the seconds of the `make demo` that finished in `folder` by step and by tool.

    The result also names the machine, the versions and the commit.
    """
    flow = Flow.open(
        str(folder / MODULES / "profiles" / f"{profile}.yaml"), {}, folder / "artifacts"
    )
    manifest = read_json(flow.workspace.manifest)
    steps = {module: step["seconds"] for module, step in manifest["steps"].items()}
    tools = {tool: round(seconds, 1) for tool, seconds in in_tools(flow).items()}
    total = sum(steps.values())
    return {
        "outside_the_tools_percent": round(100 * (1 - in_tool_cells(flow) / total), 1),
        "outside_the_tools_seconds": round(total - in_tool_cells(flow), 1),
        "steps_seconds": steps,
        "tools_seconds": tools,
        **provenance(flow, folder),
    }


def main() -> None:
    """Measures, writes the figures and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = default_profile()
    meaning = f"name of the profile that `make demo` runs; by default {default}"
    parser.add_argument("profile", nargs="?", default=default, help=meaning)
    profile = parser.parse_args().profile
    with tempfile.TemporaryDirectory() as temporary:
        figures = measure(Path(temporary) / "model-serve-flow", profile)
    write_json(ROOT / "docs" / "benchmarks" / f"{profile}.json", figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
