"""Runs the commands `serving-from-scratch serve FOLDER`, `… doctor FOLDER`, `… gateway FILE`
and `… up FILE`.
"""

import os
import socket
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import uvicorn

from serving_from_scratch.api.app import create_app
from serving_from_scratch.api.sse import Service
from serving_from_scratch.core.batching import make_strategy
from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.core.options import ModelOptions
from serving_from_scratch.core.proposers import Proposer, make_proposer
from serving_from_scratch.engine.executor import KEY_VARIABLE, Executor, WorkerProcess
from serving_from_scratch.engine.llm_engine import EngineOptions, LLMEngine
from serving_from_scratch.engine.parallel import DataParallel, PipelineParallel, TensorParallel

ADMIN_KEY_VARIABLE = "SERVING_FROM_SCRATCH_ADMIN_KEY"
UVICORN: Any = {"log_level": "warning", "access_log": False, "timeout_graceful_shutdown": 5}
SEND_BUFFER = 64 * 1024  # bytes that the kernel holds for one slow reader


class Server(uvicorn.Server):
    """Shuts down in order: new requests get 503, running requests may finish.

    Args:
        engine: the engine to drain.
        drain_seconds: how long running requests may still take.
    """

    def __init__(self, config: uvicorn.Config, engine: LLMEngine, drain_seconds: float) -> None:
        super().__init__(config)
        self.engine, self.drain_seconds = engine, drain_seconds

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drains at the first signal, and stops at once at the second."""
        if self.engine.workload.draining:
            self.drain_seconds = 0
            self.should_exit = self.force_exit = True
        else:
            self.engine.workload.draining = True
            threading.Thread(target=self._drain).start()

    def _drain(self) -> None:
        self.engine.close(self.drain_seconds)
        self.should_exit = True


class Commands(click.Group):
    """Ends a command that cannot do its work in one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ServingError as error:
            sys.exit(str(error))


@click.group(cls=Commands)
def main() -> None:
    """A server of language models that a reader can build."""


def model_options(command: Any) -> Any:
    """Adds the options for loading a model."""
    defaults = ModelOptions("")
    for option in (
        click.option("--threads", default=defaults.threads, help="Of torch; 0: its own number."),
        click.option("--blocks", default=defaults.blocks, help="Pages of the cache; 0: enough."),
        click.option("--length", default=defaults.length, help="Tokens of prompt and answer."),
        click.option("--places", default=defaults.places, help="Requests that run at once."),
        click.option("--attention", default=defaults.attention, help="sdpa, eager, tiled, paged."),
        click.option("--cache", default=defaults.cache, help="slots, paged or none."),
        click.option("--precision", default=defaults.precision, help="bfloat16 or float32."),
        click.argument("folder", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


@main.command()
@model_options
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0: any free one.")
@click.option("--name", default="", help="Of the model; by default its folder's name.")
@click.option("--strategy", default="continuous", help="Who computes next.", show_default=True)
@click.option("--chunk", default=256, help="Tokens a step of the strategy chunked.")
@click.option("--prefixes", is_flag=True, help="Computes equal beginnings once.")
@click.option("--proposer", default="none", help="Guesses tokens: none, ngram or draft.")
@click.option("--draft", default="", help="Folder of the draft model.")
@click.option("--guesses", default=5, help="Tokens that are guessed at once.")
@click.option("--parallel", default="", help="With --ranks: tensor, pipeline or data.")
@click.option("--ranks", default=2, help="Worker processes that compute one step.")
@click.option("--max-waiting", default=256, help="More requests get 429.")
@click.option("--step-seconds", default=30.0, help="A worker silent for longer is ended.")
@click.option("--request-seconds", default=600.0, help="The longest time of a request.")
@click.option("--write-seconds", default=30.0, help="Ends streams whose client reads nothing.")
@click.option("--drain-seconds", default=30.0, help="What running requests may take at the end.")
@click.option("--vllm", default="", help="Address of a vLLM for /generate_vllm.")
def serve(host: str, port: int, name: str, **options: Any) -> None:
    """Serves the model of FOLDER.

    The API key is taken from SERVING_FROM_SCRATCH_API_KEY.
    """
    listener = listen(host, port, options["write_seconds"])
    wanted = engine_options(options)
    engine = LLMEngine(wanted, executor_of(wanted, options))
    service = Service(
        engine=engine,
        name=name or options["folder"].resolve().name,
        key=os.environ.get(KEY_VARIABLE, ""),
        write_seconds=options["write_seconds"],
        vllm=options["vllm"],
    )
    config = uvicorn.Config(create_app(service), **UVICORN)
    click.echo(f"Serving {service.name} at http://{host}:{listener.getsockname()[1]}")
    Server(config, engine, options["drain_seconds"]).run(sockets=[listener])


@main.command()
@model_options
def doctor(**options: Any) -> None:
    """Loads the model of FOLDER as `serve` does, and says what it finds."""
    started = time.monotonic()
    engine = LLMEngine(engine_options(options))
    engine.close()
    click.echo(f"loaded in {time.monotonic() - started:.1f} seconds")
    for name, value in asdict(engine.facts).items():
        click.echo(f"{name}: {value}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, help="0: any free one.")
@click.option("--write-seconds", default=30.0, help="Ends streams whose client reads nothing.")
def gateway(file: Path, host: str, port: int, write_seconds: float) -> None:
    """Serves the models of FILE at one address.

    The keys are taken from SERVING_FROM_SCRATCH_API_KEY and SERVING_FROM_SCRATCH_ADMIN_KEY.
    """
    from serving_from_scratch.gateway.app import create_gateway
    from serving_from_scratch.gateway.registry import read_models

    keys = (os.environ.get(name, "") for name in (KEY_VARIABLE, ADMIN_KEY_VARIABLE))
    app = create_gateway(read_models(file), *keys)
    listener = listen(host, port, write_seconds)
    click.echo(f"Serving {file.name} at http://{host}:{listener.getsockname()[1]}")
    uvicorn.Server(uvicorn.Config(app, **UVICORN)).run(sockets=[listener])


@main.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path("compose.yaml"))
@click.option("--profile", multiple=True, help="Starts the services of this profile too.")
@click.option(
    "--environments",
    type=click.Path(path_type=Path),
    default=Path(".environments"),
    envvar="MODEL_SERVE_FLOW_ENVIRONMENTS",
)
def up(file: Path, profile: tuple[str, ...], environments: Path) -> None:
    """Runs the services of a compose FILE as local processes."""
    from serving_from_scratch.gateway import compose

    variables = {"GATEWAY_HOST": "127.0.0.1", **os.environ}
    compose.up(compose.read_services(file, profile, variables), environments.resolve())


def engine_options(options: dict[str, Any]) -> EngineOptions:
    """Makes the engine's options from the command line's."""
    names = ("precision", "cache", "attention", "places", "length", "blocks", "threads")
    folder, draft = str(options["folder"]), options.get("draft", "")
    model = ModelOptions(folder, draft=draft, **{name: options[name] for name in names})
    size, chunk = options["places"], options.get("chunk", 256)
    strategy = make_strategy(options.get("strategy", "continuous"), size, chunk)
    names = ("prefixes", "max_waiting", "step_seconds", "request_seconds")
    others = {name: options[name] for name in names if name in options}
    return EngineOptions(model, strategy, proposer=proposer_of(options), **others)


def proposer_of(options: dict[str, Any]) -> Proposer:
    """Makes what guesses tokens.

    A guess of a draft model costs its share of the model's bytes: a step of a few tokens spends its
    time on reading the weights.
    """
    name, draft = options.get("proposer", "none"), options.get("draft", "")
    if (name == "draft") != bool(draft):
        problem = f"proposer is {name!r}, and draft {draft!r}."
        raise ServingError(problem, "Give both --proposer draft and --draft FOLDER, or neither.")
    guesses = options.get("guesses", 5)
    if not draft:
        return make_proposer(name, guesses)
    weights = [Path(folder).glob("*.safetensors") for folder in (draft, options["folder"])]
    own, whole = (sum(path.stat().st_size for path in paths) for paths in weights)
    return make_proposer(name, guesses, own / max(1, whole))


def executor_of(engine: EngineOptions, options: dict[str, Any]) -> Executor:
    """Makes what computes: one worker process, or several that compute together."""
    name, seconds = options["parallel"], engine.step_seconds
    known = {"tensor": TensorParallel, "pipeline": PipelineParallel, "data": DataParallel}
    if not name:
        return WorkerProcess(engine.model, seconds)
    if name not in known:
        raise ServingError(f"parallel is {name!r}.", f"Choose one of {', '.join(known)}.")
    if name == "data" and engine.prefixes:
        raise ServingError("Workers share no beginnings.", "Switch --prefixes off.")
    return known[name](engine.model, options["ranks"], seconds)


def listen(host: str, port: int, write_seconds: float) -> socket.socket:
    """Opens the port; the kernel closes connections whose client reads nothing."""
    try:
        listener = socket.create_server((host, port), backlog=2048)
    except OSError as error:
        problem = f"Port {port} of {host} cannot be opened: {error.strerror}."
        raise ServingError(problem, "Choose another one with --port.") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    milliseconds = round(write_seconds * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    return listener


if __name__ == "__main__":
    main()
