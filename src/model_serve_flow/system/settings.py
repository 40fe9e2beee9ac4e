"""Holds the settings that come from the environment, whose names begin with MODEL_SERVE_FLOW_.

They say where things are on this machine. What is measured, and how, is in the profile, whose
values have variables of their own: `MODEL_SERVE_FLOW__PERFORMANCE__SECONDS=10`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_serve_flow.errors import FlowError
from model_serve_flow.system.variables import MARKS, PREFIX, PROFILE_PREFIX, variable

LEAST_KEY_LENGTH = 16
# Kubernetes gives every container such variables for each Service of the namespace. A workbench
# called model-serve-flow has a Service of this name.
_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)")


def _long_enough(key: SecretStr | None) -> SecretStr | None:
    if key is not None and len(key) < LEAST_KEY_LENGTH:
        raise FlowError(
            f"{variable('api_key')} has {len(key)} characters, at least {LEAST_KEY_LENGTH} are "
            "needed.",
            "Make one: openssl rand -hex 32.",
        )
    return key


def _existing(mirror: Path | None) -> Path | None:
    folder = mirror and mirror.resolve()
    if folder is not None and not folder.is_dir():
        raise FlowError(
            f"The mirror {folder} is not a folder.",
            f"Correct --mirror or {variable('mirror')}, or fill it: model-serve-flow mirror --to "
            f"{folder}",
        )
    return folder


Folder = Annotated[Path | None, AfterValidator(lambda folder: folder and folder.expanduser())]


class Settings(BaseSettings):
    """The variables of the user. An empty variable counts as not set.

    `~` at the beginning of a folder is the home of the user. `variables.MARKS` are not of the user.
    """

    model_config = SettingsConfigDict(
        alias_generator=variable,
        case_sensitive=True,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    api_key: Annotated[SecretStr | None, AfterValidator(_long_enough)] = Field(
        None,
        description=f"key that clients of a served model send, at least {LEAST_KEY_LENGTH} "
        "characters; none: a new one for each server",
    )
    artifacts: Folder = Field(
        None, description="folder of all artifacts; none: artifacts/ of the checkout"
    )
    cache: Folder = Field(
        None,
        description="folder of downloads and compiled kernels; none: ~/.cache/model-serve-flow",
    )
    environments: Folder = Field(
        None, description="folder of the Python environments; none: .environments of the checkout"
    )
    index: str | None = Field(
        None,
        description="the only package index to ask; public: the one that uv asks by default; none: "
        "those of uv and pip",
    )
    mirror: Annotated[Folder, AfterValidator(_existing)] = Field(
        None, description="folder from which models and data are taken, with the network off"
    )
    modules: Folder = Field(
        None, description="folder of the notebooks; none: examples/model-serve-flow"
    )
    profiles: Folder = Field(
        None, description="folder of the profiles; none: profiles/ beside the notebooks"
    )


def settings() -> Settings:
    """Reads the settings from the environment as it is now.

    Raises:
        FlowError: the key is too short, or the mirror is no folder.
    """
    return Settings()


def require_known(names: Iterable[str]) -> None:
    """Checks that every variable of ours is a setting, so that no misspelt one is ignored.

    Args:
        names: names of the variables of the environment.

    Raises:
        FlowError: names the unknown variables and the most similar settings.
    """
    known = [variable(setting) for setting in (*Settings.model_fields, *MARKS)]
    unknown = sorted(
        name
        for name in names
        if name.startswith(PREFIX)
        and not name.startswith(PROFILE_PREFIX)
        and name not in known
        and not _SERVICE.fullmatch(name.removeprefix(PREFIX))
    )
    if unknown:
        likely = [near for name in unknown for near in difflib.get_close_matches(name, known, 1)]
        raise FlowError(
            f"No setting is called {', '.join(unknown)}.",
            f"Perhaps {', '.join(likely)}? " * bool(likely)
            + "Correct or unset it; model-serve-flow --help lists the settings.",
        )
