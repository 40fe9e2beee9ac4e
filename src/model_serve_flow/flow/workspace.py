"""Names the folders of one profile: its models, results, logs and report."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from model_serve_flow.errors import RERUN, FlowError
from model_serve_flow.flow.results.compared import Comparison
from model_serve_flow.flow.results.measured import (
    AccuracyResult,
    CompressionResult,
    DistributionResult,
    Model,
    PerformanceResult,
)
from model_serve_flow.system.digests import digest_once
from model_serve_flow.system.files import read_result, writing
from model_serve_flow.system.weights import float_weights, weight_files


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile in the artifacts folder.

    In the methods, `model` is 'base' or a candidate's name.
    """

    root: Path

    @classmethod
    def of(cls, artifacts: str | Path, profile: str) -> Workspace:
        """Returns the workspace of a profile; its folder is created by the first write."""
        return cls(Path(artifacts).resolve() / profile)

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def deploy(self) -> Path:
        return self.root / "deploy"

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def results(self, model: str) -> Path:
        return self.root / "results" / model

    def raw(self, model: str) -> Path:
        return self.results(model) / "raw"

    def accuracy(self, model: str) -> AccuracyResult:
        return read_result(self.results(model) / "accuracy.json", AccuracyResult)

    def performance(self, model: str) -> PerformanceResult:
        return read_result(self.results(model) / "performance.json", PerformanceResult)

    def performance_in_blocks(self) -> PerformanceResult:
        """Reads the base's performance that 05 measured in blocks, beside the candidates."""
        return read_result(self.results("base") / "performance_in_blocks.json", PerformanceResult)

    def accuracy_again(self) -> AccuracyResult:
        """Reads the base's second measurement, for the noise floor."""
        return read_result(self.results("base") / "accuracy_again.json", AccuracyResult)

    def distribution(self, model: str) -> DistributionResult:
        return read_result(self.results(model) / "distribution.json", DistributionResult)

    def distribution_again(self) -> DistributionResult:
        """Reads the base's second measurement, for the noise floor."""
        return read_result(self.results("base") / "distribution_again.json", DistributionResult)

    def compression(self, model: str) -> CompressionResult:
        return read_result(self.results(model) / "compression.json", CompressionResult)

    def comparison(self) -> Comparison:
        return read_result(self.report / "comparison.json", Comparison)

    def require_writable(self) -> None:
        """Checks that the workspace's folder and its subfolders can be written.

        The folder is created if it is missing. The check leaves no file behind.

        Raises:
            FlowError: a folder cannot be written, or the disk is full; names the folder and what to
                do.
        """
        with writing(self.root, "folder"):
            self.root.mkdir(parents=True, exist_ok=True)
            _probe(self.root)
            for folder in (*self.root.glob("*/"), *self.root.glob("results/*/")):
                with writing(folder, "folder"):
                    _probe(folder)


def _probe(folder: Path) -> None:
    # The file has no name, so it disappears even if this process is killed.
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def describe_model(name: str, folder: Path) -> Model:
    """Returns digest (see `digest_once`), size and number of float weights of a checkpoint folder.

    Args:
        name: 'base' or the candidate's name.
        folder: the checkpoint.

    Raises:
        FlowError: the folder is missing or contains no safetensors weights.
    """
    weights = weight_files(folder)
    if not weights or (digest := digest_once(folder)) is None:
        raise FlowError(
            f"{folder} holds no *.safetensors weights.",
            f"Correct the source, if it names one. {RERUN}",
        )
    values, size = float_weights(weights) or (None, None)
    return Model(
        name=name,
        sha256=digest,
        size_bytes=sum(path.stat().st_size for path in weights),
        float_values=values,
        float_bytes=size,
    )
