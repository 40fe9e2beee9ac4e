"""The gateway of the teaching engine as its clients see it."""

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serving-from-scratch"
STAND_IN = Path(__file__).resolve().with_name("stand_in.py")
KEY, ADMIN_KEY, PREDICTOR_KEY = "clients-key", "admins-key", "predictors-key"
PORTS = ("GATEWAY_PORT", "OWN_PORT", "OWN_2_PORT", "LLAMA_PORT", "DIGITS_PORT", "VLLM_PORT")
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def free_ports(count):
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


@dataclass
class Door:
    """A gateway as its clients see it."""

    client: httpx.Client
    process: psutil.Process
    ports: dict

    @property
    def openai(self):
        from openai import OpenAI

        direct = httpx.Client(trust_env=False, timeout=120)
        url = str(self.client.base_url).rstrip("/")
        return OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=direct)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def direct(self, service, path, **body):
        """Asks a predictor without the gateway."""
        url = f"http://127.0.0.1:{self.ports[f'{service}_PORT']}{path}"
        headers = {"Authorization": f"Bearer {PREDICTOR_KEY}"}
        return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=120)

    def admin(self, method, path="", /, **body):
        return self.client.request(method, f"/admin/models{path}", headers=ADMIN, json=body or None)

    @contextlib.contextmanager
    def models(self, *specs):
        """Adds models, and removes them at the end."""
        with contextlib.ExitStack() as stack:
            for spec in specs:
                reply = self.admin("POST", **spec)
                assert reply.status_code == 201, reply.text
                stack.callback(self.admin, "DELETE", f"/{spec['name']}")
            yield

    def healthy(self):
        """The health of every predictor, by its name."""
        models = self.client.get("/health").json()["models"]
        return {name: state for states in models.values() for name, state in states.items()}


def answers(port):
    with contextlib.suppress(OSError):
        return not socket.create_connection(("127.0.0.1", port)).close()
    return False
