"""Runs the services of a compose file as local processes, with the file's own commands."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import yaml

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.gateway.lifecycle import END_SECONDS, end_with_parent
from serving_from_scratch.gateway.registry import expand

LOOK_EVERY = 0.2  # seconds
DEATHS, WITHIN = 3, 60.0  # so many deaths within so many seconds: the service cannot run


@dataclass
class Service:
    """One service of a compose file.

    Attributes:
        command: its command line.
        variables: its environment.
        environment: the Python environment of its image (the build argument ENVIRONMENT).
        restarts: whether it is started again when it ends.
    """

    name: str
    command: list[str]
    variables: dict[str, str]
    environment: str
    restarts: bool
    deaths: list[float] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self, environments: Path) -> None:
        """Starts the process; its programs come from its environment."""
        path = f"{environments / self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            ["/usr/bin/env", *self.command],  # looks for the program in the new PATH
            env={**os.environ, **self.variables, "PATH": path},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    def end(self, seconds: float) -> None:
        """Waits for the end of the process, and kills what is left of it and its children."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):  # nobody of its group is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def read_services(path: Path, profiles: tuple[str, ...], given: Mapping[str, str]) -> list[Service]:
    """Reads the services of a compose file whose profiles are wanted.

    Raises:
        ServingError: the file cannot be read, or a variable is not set.
    """
    try:
        content = yaml.safe_load(expand(path.read_text(), given))
    except (OSError, yaml.YAMLError) as error:
        raise ServingError(f"{path} cannot be read: {error}.") from error
    return [
        Service(
            name=name,
            command=[str(part) for part in service["command"]],
            variables={key: str(value) for key, value in service.get("environment", {}).items()},
            environment=service["build"]["args"]["ENVIRONMENT"],
            restarts=service.get("restart", "no") != "no",
        )
        for name, service in content["services"].items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    ]


def up(services: list[Service], environments: Path) -> None:
    """Runs services until SIGTERM or SIGINT, and ends them all.

    Raises:
        ServingError: an environment is missing, or a service keeps ending.
    """
    for service in services:
        python = environments / service.environment / "bin" / "python"
        if not python.exists():
            hint = f"Build it: make {service.environment}, or make environments."
            raise ServingError(f"{python} of the service {service.name} is missing.", hint)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for service in services:
            service.start(environments)
            click.echo(f"{service.name}: {' '.join(service.command)}")
        while True:
            time.sleep(LOOK_EVERY)
            for service in services:
                _look_after(service, environments)
    except KeyboardInterrupt:
        click.echo("Ending all services.")
    finally:
        for service in services:
            if service.process:
                service.process.terminate()
        deadline = time.monotonic() + END_SECONDS
        for service in services:
            service.end(max(0.0, deadline - time.monotonic()))


def _look_after(service: Service, environments: Path) -> None:
    """Starts a service again that has ended."""
    if service.process is None or service.process.poll() is None:
        return
    now = time.monotonic()
    service.deaths = [moment for moment in service.deaths if now - moment < WITHIN] + [now]
    click.echo(f"{service.name} ended with exit code {service.process.returncode}.")
    if not service.restarts or len(service.deaths) == DEATHS:
        times = f"{len(service.deaths)} times within {WITHIN:g} seconds"
        raise ServingError(f"{service.name} ended {times}.", "Its output says why.")
    service.end(0)  # what it has left behind
    service.start(environments)
