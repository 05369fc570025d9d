"""Running vLLM servers as a generator: requests spread over them, weights sent by vLLM's own transfer."""

from rwml_lightning.generation.servers.generator import VLLMServerGenerator

__all__ = ["VLLMServerGenerator"]
