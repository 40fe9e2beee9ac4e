"""Gives tests an engine for servers that they make themselves."""

from model_serve_flow.flow.load import load_profile
from model_serve_flow.serve.vllm import Vllm

VLLM = Vllm(load_profile("ci"))
