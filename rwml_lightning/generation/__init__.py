"""Generators: they take token ids and return completions with log-probabilities."""

from rwml_lightning.generation.base import Generator
from rwml_lightning.generation.hf import HFGenerator
from rwml_lightning.generation.servers import VLLMServerGenerator
from rwml_lightning.generation.servers.pool import ServersGoneError
from rwml_lightning.generation.vllm_engine import VLLMGenerator
from rwml_lightning.generation.weight_check import WeightCheck, WeightSyncError

__all__ = [
    "Generator",
    "HFGenerator",
    "ServersGoneError",
    "VLLMGenerator",
    "VLLMServerGenerator",
    "WeightCheck",
    "WeightSyncError",
]
