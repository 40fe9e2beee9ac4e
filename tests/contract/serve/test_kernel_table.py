"""The table of kernels is what the installed vLLM decides: it is made again and compared, line by
line.
"""

import subprocess
import sys
from pathlib import Path

from model_serve_flow.system import schemes

ROOT = Path(__file__).parents[3]


def test_the_installed_vllm_picks_the_kernels_of_the_table():
    """Where it fails after an upgrade: `python tools/kernel_table.py src/.../kernel_table.json`,
    and read the diff.
    """
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "kernel_table.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    written = (Path(schemes.__file__).with_name("kernel_table.json")).read_text(encoding="utf-8")
    assert made.stdout.splitlines() == written.splitlines()
