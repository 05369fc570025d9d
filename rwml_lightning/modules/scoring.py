"""Log-probabilities of a text from a plain forward pass, for checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rwml_lightning.functional import logprobs_from_logits


@torch.no_grad()
def score_text(
    model: nn.Module, token_ids: Sequence[int], tensors: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Compute the log-probability in nats of every token except the first, without packing.

    Args:
        model: Hugging Face model, plain or wrapped by PEFT.
        token_ids: Token ids of the text.
        tensors: Replacements for tensors of the model, by name; tensors tied to them are replaced as well.
    """
    ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        output = functional_call(
            model, cast("dict[str, Tensor]", dict(tensors or {})), (), {"input_ids": ids, "use_cache": False}
        )
    finally:
        model.train(was_training)
    return logprobs_from_logits(output.logits[0, :-1], ids[0, 1:]).logprobs.float().cpu()
