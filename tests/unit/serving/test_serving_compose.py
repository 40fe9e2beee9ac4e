"""compose.yaml, models.yaml and the Dockerfile agree with each other and with the checkout."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from model_serve_flow.system import lockfiles

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "serving-from-scratch"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read(name):
    return yaml.safe_load(VARIABLE.sub(lambda match: match[2], (EXAMPLE / name).read_text()))


SERVICES = read("compose.yaml")["services"]
MODELS = read("models.yaml")["models"]
PREDICTORS = {name: service for name, service in SERVICES.items() if name != "gateway"}


def option(service, name):
    command = service["command"]
    return command[command.index(name) + 1]


def test_each_address_of_a_model_is_a_service_of_that_name():
    addresses = {url: model["name"] for model in MODELS for url in model.get("urls", ())}
    served = {
        f"http://127.0.0.1:{option(service, '--port')}": service for service in PREDICTORS.values()
    }
    assert len(served) == len(PREDICTORS) and addresses.keys() == served.keys()
    for url, service in served.items():
        named = {"--name", "--served-model-name"} & set(service["command"])
        for name in named:
            assert option(service, name) == addresses[url]


def test_the_gateway_is_the_only_door():
    gateway = SERVICES["gateway"]
    port = option(gateway, "--port")
    assert gateway["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert all(service["network_mode"] == "service:gateway" for service in PREDICTORS.values())
    assert not any("ports" in service for service in PREDICTORS.values())


def test_both_files_name_the_same_variables_with_the_same_defaults():
    compose, models = (
        dict(VARIABLE.findall((EXAMPLE / name).read_text()))
        for name in ("compose.yaml", "models.yaml")
    )
    assert models.items() <= compose.items()
    assert models.keys() <= SERVICES["gateway"]["environment"].keys()
    assert {model["key"] for model in MODELS if "key" in model} == {"PREDICTOR_KEY"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_s_image_is_an_environment_with_its_programs(name):
    service = SERVICES[name]
    environment = service["build"]["args"]["ENVIRONMENT"]
    locks = ROOT / "examples" / "model-serve-flow" / "environments" / environment
    assert (locks / "cpu.txt").is_file()
    assert (EXAMPLE / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    python, flag, program, *_ = service["command"]
    assert (python, flag) == ("python", "-m")
    if program.startswith("serving_from_scratch"):
        assert (ROOT / "src" / f"{program.replace('.', '/')}.py").is_file()


def test_what_the_dockerfile_copies_exists():
    lines = (EXAMPLE / "Dockerfile").read_text().splitlines()
    copied = [path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]]
    assert len(copied) >= 4
    for path in copied:
        assert (ROOT / path).exists(), path


def test_the_lock_of_the_stock_servers_has_what_they_pin_and_no_torch():
    pyproject = tomllib.loads((EXAMPLE / "predictors" / "pyproject.toml").read_text())
    environments = ROOT / "examples" / "model-serve-flow" / "environments"
    pins = {pin.name: pin for pin in lockfiles.read(environments / "predictors" / "cpu.txt")}
    for requirement in pyproject["project"]["dependencies"]:
        name, version = requirement.split("==")
        assert str(pins[name].version) == version
    assert not {"torch", "transformers", "vllm", "mcp"} & pins.keys()
