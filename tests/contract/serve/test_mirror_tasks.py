"""Stock lm-eval tasks from a mirror, with the network off;
`../shared/hub` beside the checkout is one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.engines import VLLM

from model_serve_flow.setup import offline
from model_serve_flow.setup.lm_eval_data import task_needs

SHARED = Path(__file__).resolve().parents[4] / "shared"
TASKS = ("arc_easy", "hellaswag", "mmlu", "ifeval")
pytestmark = pytest.mark.skipif(
    not (SHARED / "hub").is_dir(), reason=f"no mirror at {SHARED / 'hub'}"
)

LOAD = """
import json, os, socket, sys

def refuse(self, address):
    raise AssertionError(f"the network was used: {address}")

socket.socket.connect = socket.socket.connect_ex = refuse
import lm_eval
from model_serve_flow.setup.hub import hub_rows
from model_serve_flow.flow.profile import HubDataset
from model_serve_flow.setup.offline import working_folder

before = os.getcwd()
with working_folder():
    raw = lm_eval.simple_evaluate(
        model="dummy", tasks=sys.argv[1:], limit=2, bootstrap_iters=0, log_samples=True
    )
assert os.getcwd() == before
text = HubDataset(path="Salesforce/wikitext", name="wikitext-2-raw-v1", split="test", column="text")
rows = hub_rows(text, "text", lambda stream: stream.take(2))
print(json.dumps({"rows": rows, "samples": {
    task: [sample["arguments"] for sample in samples] for task, samples in raw["samples"].items()
}}, default=str))
"""


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The shared mirror, in use, with its NLTK data beside it."""
    monkeypatch.setenv(offline.VARIABLE, str(SHARED / "hub"))
    monkeypatch.setenv("NLTK_DATA", str(SHARED / "nltk_data"))
    return {**os.environ, **offline.variables(), "HF_HOME": str(tmp_path / "hf")}


def test_stock_tasks_and_texts_load_without_a_network(mirror, tmp_path):
    import pyarrow.parquet as parquet

    done = subprocess.run(
        [sys.executable, "-c", LOAD, *TASKS],
        capture_output=True,
        text=True,
        env=mirror,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    samples = found["samples"]
    assert len([task for task in samples if task.startswith("mmlu_")]) == 57
    assert {"arc_easy", "hellaswag", "ifeval"} < samples.keys()
    assert all(len(arguments) == 2 for arguments in samples.values())
    arc = parquet.read_table(
        SHARED / "hub" / "allenai" / "ai2_arc" / "ARC-Easy" / "test-00000-of-00001.parquet"
    )
    assert samples["arc_easy"][0][0][0] == f"Question: {arc['question'][0]}\nAnswer:"
    assert len(found["rows"]) == 2


def test_what_the_tasks_load_is_read_from_their_definitions():
    needs = task_needs(TASKS)
    assert [need for need in needs if need[1] != "cais/mmlu"] == [
        ("dataset", "allenai/ai2_arc", "ARC-Easy"),
        ("dataset", "Rowan/hellaswag", None),
        ("dataset", "google/IFEval", None),
        ("nltk", "tokenizers/punkt_tab", None),
    ]
    assert len([need for need in needs if need[1] == "cais/mmlu"]) == 57


def test_the_accuracy_step_measures_inside_the_mirror(mirror, tmp_path, monkeypatch):
    import lm_eval

    from model_serve_flow.flow.flow import Flow
    from model_serve_flow.measure import accuracy
    from model_serve_flow.serve.server import Server

    monkeypatch.setattr(
        lm_eval, "simple_evaluate", lambda **_: {"folder": Path.cwd(), "config": {}}
    )
    monkeypatch.setattr(accuracy, "task_manager", lambda flow: None)
    server = Server(
        "http://127.0.0.1:9",
        "base",
        "a-key",
        tmp_path,
        tmp_path / "vllm.log",
        None,
        0.0,
        engine=VLLM,
    )
    before = Path.cwd()
    flow = Flow.open("ci", {}, tmp_path)
    raw, _ = accuracy.evaluate(flow, server, tmp_path / "log")
    assert raw["folder"] == (SHARED / "hub").resolve()
    assert Path.cwd() == before
