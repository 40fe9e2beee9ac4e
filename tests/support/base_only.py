"""What the package needs by itself, without the environments of the notebooks."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distributions() -> dict[str, importlib.metadata.Distribution]:
    """Name -> the installed distribution, of the base dependencies and all that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [Requirement(line) for line in PROJECT["dependencies"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or not (
            requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ):
            continue
        found[name] = importlib.metadata.distribution(name)
        waiting += [Requirement(line) for line in found[name].requires or ()]
    return found


def import_names() -> set[str]:
    """The top-level names that these distributions bring."""
    parts = {file.parts[0] for one in distributions().values() for file in one.files or ()}
    return {
        part.partition(".")[0]
        for part in parts
        if not part.endswith((".dist-info", ".libs", "..", ".pth"))
    }


def link_into(site_packages: Path) -> None:
    """Puts these distributions into an empty environment, as links to those of this one."""
    for distribution in distributions().values():
        for part in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            source, target = Path(distribution.locate_file(part)), site_packages / part
            if source.exists() and not target.exists():
                target.symlink_to(source)


def build_wheel(folder: Path) -> Path:
    """A wheel of this checkout's package with its command, made without a build tool."""
    name, version = PROJECT["name"].replace("-", "_"), PROJECT["version"]
    info = f"{name}-{version}.dist-info"
    scripts = "".join(f"{command} = {target}\n" for command, target in PROJECT["scripts"].items())
    sources = [
        path
        for path in (ROOT / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    files = {str(path.relative_to(ROOT / "src")): path.read_bytes() for path in sources}
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {PROJECT['name']}\nVersion: {version}\n".encode()
    )
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
    record = "".join(
        f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()
    )
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
