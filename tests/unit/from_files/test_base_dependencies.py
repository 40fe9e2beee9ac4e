"""`compare` needs the package's base dependencies only: no engine, no notebook,
no chart library.
"""

import json
import subprocess
import sys
from pathlib import Path

from support import base_only

SAMPLES = (
    Path(__file__).resolve().parents[3]
    / "examples"
    / "model-serve-flow"
    / "assets"
    / "sample-results"
)
FORBIDDING = """
import json, resource, sys

allowed = set(json.loads(sys.argv.pop(1))) | set(sys.stdlib_module_names) | {"model_serve_flow"}

class Forbids:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"{name} is no base dependency", name=name)

sys.meta_path.insert(0, Forbids())
from model_serve_flow.cli import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)
"""


def test_compare_runs_on_the_samples_with_base_dependencies_only(tmp_path):
    allowed = json.dumps(sorted(base_only.import_names()))
    assert not {"torch", "vllm", "lm_eval", "guidellm", "pandas", "matplotlib"} & set(
        json.loads(allowed)
    )
    outputs = [f"--{kind}={tmp_path / kind}" for kind in ("html", "markdown", "json", "junit")]
    sides = [str(SAMPLES / name) for name in ("base", "candidate")]
    command = [sys.executable, "-c", FORBIDDING, allowed, "compare", *sides, *outputs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 10, done.stderr
    assert done.stdout.startswith("DO NOT SHIP: ")
    assert float(done.stderr.splitlines()[-1]) < 10  # seconds of CPU
    assert len(list(tmp_path.iterdir())) == 4
