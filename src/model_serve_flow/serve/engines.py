"""Chooses the engine that a profile names."""

from __future__ import annotations

from model_serve_flow.flow.profile import FlowConfig
from model_serve_flow.serve.command import Command
from model_serve_flow.serve.engine import Engine
from model_serve_flow.serve.vllm import Vllm

# Python packages whose versions decide how a model is served
PACKAGES = frozenset(Vllm.packages)


def engine_of(config: FlowConfig) -> Engine:
    """Returns the engine that serves the models of a profile."""
    return Vllm(config) if config.engine.kind == "vllm" else Command(config)
