"""Downloads repositories and reads datasets of the Hugging Face hub."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.profile import HubDataset
from model_serve_flow.setup.offline import local

if TYPE_CHECKING:
    from datasets import IterableDataset

# Second copies of the weights in a repository, under other names or in a subfolder.
SECOND_COPIES = ("consolidated*.safetensors", "*/*.safetensors")


def download(
    repository: str,
    revision: str | None,
    partial: Path,
    patterns: tuple[str, ...],
    kind: Literal["model", "dataset"] = "model",
) -> dict[str, Any]:
    """Downloads the files of a hub repository that match the patterns, at one commit.

    Returns:
        {"commit": ...}, for the source record.

    Raises:
        FlowError: there is no such repository or revision, it is gated, or there is no network.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _hub_errors(repository, revision, kind):
        commit = HfApi().repo_info(repository, revision=revision, repo_type=kind).sha
        snapshot_download(
            repository,
            revision=commit,
            repo_type=kind,
            local_dir=partial,
            allow_patterns=list(patterns),
            ignore_patterns=list(SECOND_COPIES if kind == "model" else ()),
        )
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the hub client's notes on the download
    return {"commit": commit}


@contextmanager
def _hub_errors(repository: str, revision: str | None, kind: str) -> Iterator[None]:
    """Turns the hub client's errors into a FlowError that says what to do."""
    import httpx
    from huggingface_hub import errors

    place = f"datasets/{repository}" if kind == "dataset" else repository
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{place}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise FlowError(
            f"{repository} is gated: its owner wants you to accept its terms first.",
            f"Accept them on {page}, then set HF_TOKEN to a token of that account (or run 'hf auth "
            "login').",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FlowError(
            f"{repository} has no revision {revision!r}.",
            f"Look at the branches and commits on {page}.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FlowError(
            f"{repository!r} is neither a local folder nor a repository that you can see on the "
            "hub.",
            f"Check the spelling; if {page} is private, set HF_TOKEN.",
        ) from error
    except errors.HFValidationError as error:
        raise FlowError(
            f"{repository!r} is neither a local folder nor a valid hub id.",
            "A hub id looks like org/model.",
        ) from error
    except (
        httpx.TransportError,
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
    ) as error:
        raise FlowError(
            f"The hub cannot be reached to download {repository}: {_first_line(error)}",
            "Check the network, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, or set 'source' to a "
            "local folder.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise FlowError(
            f"The hub refused to give {repository}: {_first_line(error)}",
            "Try again later, or use a local folder.",
        ) from error


def _first_line(error: Exception) -> str:
    return re.split(r"\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__


def hub_rows(
    source: HubDataset, key: str, choose: Callable[[IterableDataset], Iterable[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Returns the rows that `choose` takes from the streamed dataset.

    Args:
        source: the dataset; a local folder works too.
        key: the profile's key of the dataset, for errors.
        choose: takes the stream and returns rows of it.

    Returns:
        Rows {"text": ...} or {"messages": ...}.

    Raises:
        FlowError: the dataset cannot be loaded or lacks the column.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        path, revision = local(source.path), source.revision
        stream = load_dataset(
            path, source.name, split=source.split, revision=revision, streaming=True
        )
        rows = list(choose(stream))
    except (DatasetNotFoundError, OSError, ValueError) as error:
        raise FlowError(
            f"Dataset {source.path!r} cannot be loaded: {str(error).splitlines()[0]}",
            f"Check {key} (path, name, split, revision), the network and HF_TOKEN, or use a local "
            "folder.",
        ) from error
    if rows and source.column not in rows[0]:
        raise FlowError(
            f"Dataset {source.path!r} has no column {source.column!r}; it has "
            f"{', '.join(rows[0])}.",
            f"Set {key}.column.",
        )
    return [
        {"text" if isinstance(row[source.column], str) else "messages": row[source.column]}
        for row in rows
    ]
