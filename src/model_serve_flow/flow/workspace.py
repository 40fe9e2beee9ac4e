"""The folders of one profile: where its models, results, logs and report are."""

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
from model_serve_flow.system.weights import weight_files


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile under the artifacts folder;
    `model` is 'base' or a candidate's name.
    """

    root: Path

    @classmethod
    def of(cls, artifacts: str | Path, profile: str) -> Workspace:
        """The workspace of a profile; its folder is made when something is written."""
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
        """The base's performance measured in 05, in blocks beside the candidates'."""
        return read_result(self.results("base") / "performance_in_blocks.json", PerformanceResult)

    def accuracy_again(self) -> AccuracyResult:
        """The base's second measurement, for the noise floor."""
        return read_result(self.results("base") / "accuracy_again.json", AccuracyResult)

    def distribution(self, model: str) -> DistributionResult:
        return read_result(self.results(model) / "distribution.json", DistributionResult)

    def distribution_again(self) -> DistributionResult:
        """The base's second measurement, for the noise floor."""
        return read_result(self.results("base") / "distribution_again.json", DistributionResult)

    def compression(self, model: str) -> CompressionResult:
        return read_result(self.results(model) / "compression.json", CompressionResult)

    def comparison(self) -> Comparison:
        return read_result(self.report / "comparison.json", Comparison)

    def require_writable(self) -> None:
        """Makes the workspace's folder and writes into it, and into those in it,
        without leaving anything.

        Raises:
            FlowError: one of them cannot be written, or the disk is full; names it and says what to
                do.
        """
        with writing(self.root, "folder"):
            self.root.mkdir(parents=True, exist_ok=True)
            _probe(self.root)
            for folder in (*self.root.glob("*/"), *self.root.glob("results/*/")):
                with writing(folder, "folder"):
                    _probe(folder)


def _probe(folder: Path) -> None:
    # without a name: nothing stays even if this process is killed
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def describe_model(name: str, folder: Path) -> Model:
    """Digest (see `digest_once`) and size of a checkpoint folder.

    Raises:
        FlowError: the folder is missing or holds no safetensors weights.
    """
    weights = weight_files(folder)
    if not weights or (digest := digest_once(folder)) is None:
        raise FlowError(
            f"{folder} holds no *.safetensors weights.",
            f"Correct the source, if it names one. {RERUN}",
        )
    return Model(name=name, sha256=digest, size_bytes=sum(path.stat().st_size for path in weights))
