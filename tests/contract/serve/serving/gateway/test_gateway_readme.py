"""Row 0.12: the examples in 07's README, executed as a reader would."""

import os
import re
import subprocess
import sys

import pytest
from support.gateway import ADMIN_KEY, EXAMPLE, KEY

README = (EXAMPLE / "07_Gateway" / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_example(compose, tiny_model, language, block):
    address = f"127.0.0.1:{compose.ports['GATEWAY_PORT']}"
    assert "localhost:8000" in block
    program = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    keys = {"GATEWAY_KEY": KEY, "ADMIN_KEY": ADMIN_KEY, "BASE": str(tiny_model)}
    done = subprocess.run(
        [*program, block.replace("localhost:8000", address)],
        env={**os.environ, **keys, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout and '"error"' not in done.stdout, done.stdout
    if "stream" in block:
        assert done.stdout.count("data: ") > 2 and "[DONE]" in done.stdout


def test_examples_use_curl_and_the_openai_client():
    assert [language for language, _ in BLOCKS] == ["sh", "sh", "python", "sh"]
    assert all("curl" in block for language, block in BLOCKS if language == "sh")
