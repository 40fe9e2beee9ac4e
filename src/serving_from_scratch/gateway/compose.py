"""Runs the services of a compose file as local processes, with the file's own commands."""

import os
import signal
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click

from serving_from_scratch.core.errors import ServingError
from serving_from_scratch.gateway.child import Child
from serving_from_scratch.gateway.registry import read_yaml

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
    child: Child | None = None

    def start(self, environments: Path) -> None:
        """Starts the process; its programs come from its environment."""
        path = f"{environments / self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.child = Child(self.command, {**self.variables, "PATH": path})

    def look_after(self, environments: Path) -> None:
        """Starts the process again if it has ended.

        Raises:
            ServingError: it keeps ending, or is not to be started again.
        """
        if self.child is None or self.child.poll() is None:
            return
        now = time.monotonic()
        self.deaths = [moment for moment in self.deaths if now - moment < WITHIN] + [now]
        click.echo(f"{self.name} ended with exit code {self.child.returncode}.")
        if not self.restarts or len(self.deaths) == DEATHS:
            times = f"{len(self.deaths)} times within {WITHIN:g} seconds"
            raise ServingError(f"{self.name} ended {times}.", "Its output says why.")
        self.child.end()  # what it has left behind
        self.start(environments)


def read_services(path: Path, profiles: tuple[str, ...], given: Mapping[str, str]) -> list[Service]:
    """Reads the services of a compose file whose profiles are wanted.

    Raises:
        ServingError: the file cannot be read, or a variable is not set.
    """
    return [
        Service(
            name=name,
            command=[str(part) for part in service["command"]],
            variables={key: str(value) for key, value in service.get("environment", {}).items()},
            environment=service["build"]["args"]["ENVIRONMENT"],
            restarts=service.get("restart", "no") != "no",
        )
        for name, service in read_yaml(path, given)["services"].items()
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
            problem = f"{python} of the service {service.name} is missing."
            raise ServingError(problem, "Build it: make environments predictors.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for service in services:
            service.start(environments)
            click.echo(f"{service.name}: {' '.join(service.command)}")
        while True:
            time.sleep(LOOK_EVERY)
            for service in services:
                service.look_after(environments)
    except KeyboardInterrupt:
        click.echo("Ending all services.")
    finally:
        _end([service.child for service in services if service.child])


def _end(children: list[Child]) -> None:
    """Ends all children at once."""
    with ThreadPoolExecutor(len(children) or 1) as pool:
        list(pool.map(Child.end, children))
