"""Chooses the package index that uv asks for the locked wheels, and explains its failures.

Needs only the standard library. The locks pin the hashes of the public files. Some workbench images
name an index with other files, which cannot serve the locks.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from model_serve_flow.system.variables import value, variable

TORCH_PATH = "/whl/cpu/torch"  # on PyTorch's own index, which uv's `--torch-backend cpu` asks
VARIABLE = variable("index")
PUBLIC = "public"  # value of VARIABLE: the index that uv asks by default
UV_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_CONFIG_FILE")
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY")
_SETTING = re.compile(r"^(?:\w+|:env:)\.([\w-]+)='(.*)'$", re.MULTILINE)
_OTHER_FILES = re.compile(
    r"[Hh]ash mismatch|HASHES|no matching hash|[Nn]o matching distribution|there is no version "
    r"of|was not found in the"
)
_CERTIFICATE = re.compile(r"certificate|UnknownIssuer|self.signed", re.IGNORECASE)


@dataclass(frozen=True)
class Index:
    """An index, as uv is told of it.

    Attributes:
        place: its name in messages, without a password.
        variables: variables added to uv's environment.
        removed: names of variables removed from uv's environment.
    """

    place: str
    variables: dict[str, str]
    removed: tuple[str, ...] = ()

    def environment(self, surrounding: Mapping[str, str]) -> dict[str, str]:
        """Returns the environment in which uv is started."""
        kept = {name: value for name, value in surrounding.items() if name not in self.removed}
        return {**kept, **self.variables}


def indexes(surrounding: Mapping[str, str]) -> list[Index]:
    """Lists the indexes to ask, one after the other, until one serves the locked files.

    `MODEL_SERVE_FLOW_INDEX` names the only index. Without it, the first index is from uv's own
    settings, or else from pip's settings, and the second is the public index. uv also gets pip's
    certificate and proxy if it has none of its own.
    """
    pip = pip_settings()
    shared = _certificate_and_proxy(surrounding, pip)
    named = value("index", surrounding)
    public = Index("the index that uv asks by default", {**shared, "UV_NO_CONFIG": "1"}, UV_INDEX)
    if named == PUBLIC:
        return [public]
    if named:
        return [Index(_shown(named), {**public.variables, "UV_DEFAULT_INDEX": named}, UV_INDEX)]
    theirs = next((surrounding[name] for name in UV_INDEX if surrounding.get(name)), None)
    if theirs is not None:
        return [Index(_shown(theirs), shared), public]
    if (url := pip.get("index-url")) is not None:
        return [Index(_shown(url), {**shared, "UV_DEFAULT_INDEX": url}), public]
    return [Index(public.place, shared)]


def has_other_files(log: str) -> bool:
    """Checks whether uv or pip failed because the index lacks the files that the locks pin."""
    return _OTHER_FILES.search(log) is not None


def hint(log: str, asked: list[Index]) -> str:
    """Tells what to do about a failed install."""
    places = " and ".join(index.place for index in asked)
    if has_other_files(log):
        return (
            f"{places} does not have the files that the locks pin: an index may carry builds of "
            f"its own, or someone changed them. Set {VARIABLE} to an index with the public files "
            f"({PUBLIC}: the one that uv asks by default), or bring the wheels along: "
            "docs/AirGapped.md."
        )
    if _CERTIFICATE.search(log):
        return (
            f"{places} has a certificate that is not trusted here. Set SSL_CERT_FILE to your "
            "company's certificate (pip's setting 'cert' is used where it is set)."
        )
    if TORCH_PATH in log:
        return (
            "The CPU build of PyTorch is on PyTorch's own index only, and could not be fetched. "
            "Put its wheel into a folder, and the folder's name into PIP_FIND_LINKS."
        )
    return (
        f"Asked was {places}. Check the network, the proxy (HTTPS_PROXY) and the free disk, then "
        "run again."
    )


@functools.cache
def pip_settings() -> dict[str, str]:
    """Returns pip's settings by name, such as "index-url"; empty without pip."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return dict(_SETTING.findall(listed))  # settings of the environment are last and win


def _certificate_and_proxy(
    surrounding: Mapping[str, str], pip: Mapping[str, str]
) -> dict[str, str]:
    given: dict[str, str] = {}
    if "cert" in pip and not surrounding.get("SSL_CERT_FILE"):
        given["SSL_CERT_FILE"] = pip["cert"]
    if "proxy" in pip and not any(
        surrounding.get(name) or surrounding.get(name.lower()) for name in PROXIES
    ):
        given |= dict.fromkeys(PROXIES, pip["proxy"])
    if "trusted-host" in pip and not surrounding.get("UV_INSECURE_HOST"):
        given["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].replace("\\n", " ").split())
    return given


def _shown(url: str) -> str:
    """Removes user name and password from a URL."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
