"""Cuts the results of a finished run to the sample: scores and ids, no texts.

python make.py artifacts/ci/results/base base
python make.py artifacts/ci/results/w4a16-int4 candidate
"""

import sys
from pathlib import Path

from model_serve_flow.flow.results.measured import AccuracyResult, PerformanceResult
from model_serve_flow.system.files import read_result, write_json

NO_TEXTS = {"prompt": None, "expected": None, "answer": None}


def main(results: Path, sample: Path) -> None:
    """Writes accuracy.json without texts and performance.json as it is."""
    accuracy = read_result(results / "accuracy.json", AccuracyResult)
    tasks = {
        name: task.model_copy(
            update={"items": tuple(i.model_copy(update=NO_TEXTS) for i in task.items)}
        )
        for name, task in accuracy.tasks.items()
    }
    document = accuracy.model_copy(update={"tasks": tasks}).model_dump(mode="json")
    for task in document["tasks"].values():
        for item in task["items"]:
            del item["prompt"], item["expected"]
    write_json(sample / "accuracy.json", document)
    write_json(
        sample / "performance.json", read_result(results / "performance.json", PerformanceResult)
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
