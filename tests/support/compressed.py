"""Makes compressed tiny models for tests that run in another environment.

    python tests/support/compressed.py ARTIFACTS '{"qwen2": {"scheme": "FP8", "ignore": []}}'

For each kind of model there is a base and its candidate "a" in ARTIFACTS/<kind>/ci/models.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LENGTH = 1024  # positions of the models: more than the engine's max_model_len


def candidates(recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns the overrides of a profile whose only candidate has this recipe."""
    return {"candidates": [{"name": "a", "recipe": recipe}]}


def build(python: Path, artifacts: Path, recipes: dict[str, dict[str, Any]]) -> None:
    """Makes the models in the environment of this Python."""
    command = [python, __file__, artifacts, json.dumps(recipes)]
    source = Path(__file__).parents[2] / "src"
    variables = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{source}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def _make(artifacts: Path, kind: str, recipe: dict[str, Any]) -> None:
    from datasets import Dataset
    from support.tiny_models import configuration, save_model

    from model_serve_flow.compress import compression
    from model_serve_flow.compress.quantise import with_texts
    from model_serve_flow.flow.flow import Flow

    flow = Flow.open("ci", candidates(recipe), artifacts / kind)
    model = kind.partition("-")[0]
    save_model(flow.workspace.model("base"), configuration(model, max_position_embeddings=LENGTH))
    rows = [[(7 * row + place) % 120 for place in range(16)] for row in range(4)]
    texts = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 16] * 4})
    # transformers gives some architectures a tokenizer of their own, which knows no word of these
    compression.generate_sample = lambda folder, **trust: ""
    compression.compress(flow, "a", with_texts(texts))


if __name__ == "__main__":
    for name, wanted in json.loads(sys.argv[2]).items():
        _make(Path(sys.argv[1]), name, wanted)
