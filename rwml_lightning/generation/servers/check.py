"""Comparison of a running vLLM server with what a trainer needs, and the command that starts the right server."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from rwml_lightning.functional.context import rope_settings
from rwml_lightning.generation.servers.transfer import BACKEND
from rwml_lightning.models import causal_config

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "rms_norm_eps",
)


class WrongServerError(ValueError):
    """The server answers, but it is not one that the trainer can use."""


def describe_model(name: str) -> dict[str, Any]:
    """Return what two models must have in common to compute the same with the same weights.

    Args:
        name: Model name, as in :func:`rwml_lightning.models.resolve_model`.
    """
    text = causal_config(name).get_text_config()
    ropes = [[rope.get("rope_type"), rope.get("rope_theta")] for rope in rope_settings(text)]
    return {
        "model_type": text.model_type,
        **{field: getattr(text, field, None) for field in _FIELDS},
        "rope": ropes,
    }


@dataclass(frozen=True)
class Need:
    """What a trainer needs of a server.

    Args:
        model: Model name, as in :func:`rwml_lightning.models.resolve_model`.
        max_model_len: Smallest context length in tokens; ``None`` for the limit of the model.
        api_key_env: Name of the environment variable that holds the API key.
    """

    model: str
    max_model_len: int | None
    api_key_env: str | None = None

    @cached_property
    def expected(self) -> dict[str, Any]:
        """Description of the model."""
        return describe_model(self.model)

    @cached_property
    def context(self) -> int:
        """Smallest context length of a server, in tokens."""
        return self.max_model_len or causal_config(self.model).get_text_config().max_position_embeddings

    def command(self, url: str, on_cpu: bool = False) -> str:
        """Return the command that starts the right server at a URL."""
        found = urlsplit(url)
        words = [
            # Not `vllm serve`, which does not start in the build for CPUs.
            "python", "-m", "vllm.entrypoints.openai.api_server", "--model", self.model, "--host", found.hostname or "127.0.0.1", "--port", str(found.port or 80),
            "--max-model-len", str(self.context), "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
            "--worker-extension-cls", "rwml_lightning.generation.servers.worker.ServerExtension",
            "--weight-transfer-config", f'{{"backend": "{BACKEND}"}}',
        ]  # fmt: skip
        if on_cpu:
            words += ["--dtype", "float32", "--no-enable-chunked-prefill"]
        if self.api_key_env:
            words += ["--middleware", "rwml_lightning.generation.servers.guard.RequireKey"]
        key = f'VLLM_API_KEY="${self.api_key_env}" ' if self.api_key_env else ""
        return f"VLLM_SERVER_DEV_MODE=1 {key}{shlex.join(words)}"

    def wrong(self, url: str, what: str, on_cpu: bool = False) -> WrongServerError:
        """Return the error for a server that cannot be used."""
        return WrongServerError(f"{url} {what}; start it with: {self.command(url, on_cpu)}")

    def check(self, url: str, found: Mapping[str, Any]) -> None:
        """Check the description that a server's worker gives (``ServerExtension.describe``).

        Raises:
            WrongServerError: The server cannot be used. The message names the reason and the right command.
        """
        on_cpu = found["device"] == "cpu"
        reason = self._fault(found, on_cpu)
        if reason is not None:
            raise self.wrong(url, reason, on_cpu)

    def _fault(self, found: Mapping[str, Any], on_cpu: bool) -> str | None:
        expected = self.expected
        differing = [name for name, value in expected.items() if found["model"].get(name) != value]
        if differing:
            first = differing[0]
            return f"serves another model than {self.model}: {first} is {found['model'].get(first)}, not {expected[first]}"
        if not found["takes_weights"]:
            return (
                f'does not take weights from a trainer (--weight-transfer-config {{"backend": "{BACKEND}"}})'
            )
        if found["logprobs_mode"] != "processed_logprobs":
            return f"returns {found['logprobs_mode']}, which are wrong at temperatures other than 1 (--logprobs-mode)"
        if found["max_model_len"] < self.context:
            return f"has a context of {found['max_model_len']} tokens, but {self.context} are needed (--max-model-len)"
        if found["data_parallel_size"] != 1:
            return "runs several copies of the model, whose weights cannot be verified: start one server per copy instead"
        if on_cpu and found["chunked_prefill"]:
            return "cuts prompts into chunks, which on a CPU makes samples depend on other requests"
        return None
