"""Reads models.yaml: which models there are, where they run, and how they are started."""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serving_from_scratch.core.errors import InvalidRequest, ServingError, UnknownModel
from serving_from_scratch.predictors import digits

if TYPE_CHECKING:
    from serving_from_scratch.gateway.lifecycle import PredictorProcess
    from serving_from_scratch.gateway.predictors import Predictor

SOURCES = {"digits": digits}  # what answers here; each has `model`, `problem` and `predict`
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:][A-Za-z0-9_./: -]*$", max_length=500)]


class ModelSpec(BaseModel):
    """One model of models.yaml.

    Attributes:
        name: that clients send as `model`.
        kind: who answers: an OpenAI-compatible server, LitServe, or the gateway itself.
        path: a second way to the model: POST <path>/v1/completions, or <path>/predict.
        urls: the addresses of its replicas, which others start and end.
        launcher: or the launcher with which the gateway starts and ends it, at its first request.
        source: the launcher's folder or file; for litserve and local, the name of a local source.
        upstream: the model's name at its predictor, if it differs.
        key: the variable with the predictor's key.
        balance: which replica answers.
        seconds: the longest silence of a predictor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Word
    kind: Literal["openai", "litserve", "local"] = "openai"
    path: Annotated[str, Field(pattern=r"^((/[\w.-]+)+)?$")] = ""
    urls: list[Url] = []
    launcher: str = ""
    source: Word | Literal[""] = ""
    upstream: str = ""
    key: Annotated[str, Field(pattern=r"^(PREDICTOR_\w+)?$")] = ""
    balance: Literal["round-robin", "least-busy", "prefix"] = "round-robin"
    seconds: Annotated[float, Field(gt=0, le=3600)] = 120.0

    @model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        if bool(self.urls) + bool(self.launcher) != (self.kind != "local"):
            raise ValueError("name either urls or a launcher; a local model has neither")
        if self.kind != "openai" and self.source not in SOURCES:
            raise ValueError(f"the source {self.source!r} is unknown; known: {', '.join(SOURCES)}")
        return self


class GatewayFile(BaseModel):
    """The content of models.yaml.

    Attributes:
        limit: how many models with a launcher are loaded at once.
        launchers: command lines in which {source}, {name} and {port} are filled in.
    """

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1)] = 2
    launchers: dict[str, list[str]] = {}
    models: list[ModelSpec] = []


@dataclass
class Model:
    """A model of the store, and what runs for it now."""

    spec: ModelSpec
    predictors: "list[Predictor]" = field(default_factory=list)
    process: "PredictorProcess | None" = None
    loading: asyncio.Task[None] | None = None
    in_flight: int = 0
    removed: bool = False


class ModelStore:
    """Finds models by name and by path."""

    def __init__(self, file: GatewayFile) -> None:
        self.launchers = file.launchers
        self.models: dict[str, Model] = {}
        for spec in file.models:
            self.add(spec)

    def add(self, spec: ModelSpec) -> Model:
        """Adds a model.

        Raises:
            InvalidRequest: the name or the path is taken, or the launcher is unknown.
        """
        if spec.name in self.models:
            raise InvalidRequest(f"The model {spec.name!r} exists already.", "name")
        if spec.path and spec.path in {model.spec.path for model in self.models.values()}:
            raise InvalidRequest(f"The path {spec.path!r} is taken.", "path")
        if spec.launcher and spec.launcher not in self.launchers:
            known = ", ".join(self.launchers)
            problem = f"The launcher {spec.launcher!r} is unknown."
            raise InvalidRequest(problem, "launcher", f"Known: {known}.")
        return self.models.setdefault(spec.name, Model(spec))

    def remove(self, name: str) -> Model:
        """Takes a model out: requests for it are refused from now on."""
        model = self.by_name(name)
        model.removed = True
        return self.models.pop(name)

    def by_name(self, name: object) -> Model:
        """Returns the model that a request names."""
        if not isinstance(name, str) or not name:
            raise InvalidRequest("The request names no model.", "model", f"Known: {self.names()}.")
        if name not in self.models:
            problem = f"The model {name!r} is not served here."
            raise UnknownModel(problem, "model", f"Known: {self.names()}.")
        return self.models[name]

    def by_path(self, path: str) -> tuple[Model, str]:
        """Returns the model with the longest matching path, and the rest of the path."""
        paths = {model.spec.path: model for model in self.models.values() if model.spec.path}
        fitting = [known for known in paths if path.startswith(f"{known}/")]
        if not fitting:
            known = ", ".join(sorted(paths))
            raise UnknownModel(f"There is nothing at {path!r}.", "", f"Models' paths: {known}.")
        longest = max(fitting, key=len)
        return paths[longest], path[len(longest) :]

    def names(self) -> str:
        return ", ".join(self.models)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Fills in ${NAME} and ${NAME:-default}, as compose does."""

    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or match[2]
        if found is None:
            raise ServingError(f"The variable {match[1]} is not set.", f"Set it: {match[0]}.")
        return found

    return VARIABLE.sub(value, text)


def read_yaml(path: Path, variables: Mapping[str, str]) -> Any:
    """Reads a YAML file, with its variables filled in.

    Raises:
        ServingError: the file cannot be read, or a variable is not set.
    """
    try:
        return yaml.safe_load(expand(path.read_text(), variables))
    except OSError as error:
        raise ServingError(f"{path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ServingError(f"{path} is no YAML: {error}") from error


def read_models(path: Path) -> GatewayFile:
    """Reads models.yaml.

    Raises:
        ServingError: the file is missing or wrong; the message names the field.
    """
    try:
        return GatewayFile.model_validate(read_yaml(path, os.environ))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ServingError(f"{path}: {place}: {first['msg']}.") from error
