"""Export the policy as a plain Hugging Face folder, and compare the folder with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rwml_lightning import parallel
from rwml_lightning.files import replacing
from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules.scoring import score_text
from rwml_lightning.weights import base_model, model_tensors

if TYPE_CHECKING:
    from rwml_lightning.modules.base import PolicyModule

EXACT_TOLERANCE = 1e-3
COARSE_TOLERANCE = 0.15
MAX_PROBE_TOKENS = 256


class ExportError(ValueError):
    """The exported model differs from the policy."""


def export_policy(policy: nn.Module, tokenizer: Any, output: Path, probe_ids: Sequence[int]) -> None:
    """Write a plain Hugging Face folder (safetensors, adapters merged) that transformers and vLLM can load.

    The folder is loaded again and compared with the policy. The digest compares every bit of the tensors. The
    log-probabilities of a text may differ by at most 0.001 nats per token in float32, and by 0.15 in lower precision,
    where merged adapters are rounded.

    Args:
        policy: Hugging Face model, plain or wrapped by PEFT. Every rank passes it, and rank 0 writes.
        tokenizer: Tokenizer to write into the same folder.
        output: Folder to write.
        probe_ids: Token ids of a real text.

    Raises:
        ExportError: The exported model differs from the policy.
    """
    base = base_model(policy)
    first = parallel.rank() == 0
    state = {name: tensor.contiguous().cpu() for name, tensor in model_tensors(policy) if first}
    scores = score_text(policy, probe_ids)
    if not first:
        return
    base.save_pretrained(output, state_dict=dict(state), safe_serialization=True)
    tokenizer.save_pretrained(output)
    written = load_causal_lm(output, base.dtype)
    if _digest(state) != _digest(dict(model_tensors(written))):
        raise ExportError(
            f"{output} does not hold the policy's tensors: transformers changed some while saving or loading"
        )
    gap = float((scores - score_text(written, probe_ids)).abs().mean())
    tolerance = EXACT_TOLERANCE if base.dtype == torch.float32 else COARSE_TOLERANCE
    if not gap <= tolerance:
        raise ExportError(
            f"the model in {output} is not the policy: log-probabilities of a text differ by {gap:.2g} nats a token "
            f"(tolerance {tolerance:g})"
        )


def write_export(module: PolicyModule, output: Path, probe_ids: Sequence[int]) -> None:
    """Export the policy of a module with :func:`export_policy`. The folder appears only when it is complete.

    All ranks call it. None returns before the folder exists.

    Args:
        module: Module of a stage.
        output: Folder to write.
        probe_ids: Token ids of a real text, for the comparison of the folder with the policy.
    """

    def write() -> None:
        with replacing(output) if parallel.rank() == 0 else nullcontext(output) as folder:
            export_policy(module.policy, module.tokenizer, folder, probe_ids[:MAX_PROBE_TOKENS])

    parallel.together(write)


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in tensors.items())
