"""Log-probabilities and entropies from hidden states, without materialising all logits.

The head is a matrix of vocabulary x width, and the logits of all trained tokens would take more memory than the model.
They are computed for a chunk of tokens at a time and recomputed in the backward pass. Besides the hidden states, only two
numbers per token are stored for it: the normaliser and the entropy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TokenLogprobs(NamedTuple):
    """Log-probabilities and entropies of tokens under a model.

    Args:
        logprobs: Log-probability of each token, in nats.
        entropy: Entropy of the predicted distribution at each token, in nats.
    """

    logprobs: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]


def chunked_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    chunk_size: int = 512,
    temperature: float = 1.0,
    bias: Float[Tensor, " vocabulary"] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> TokenLogprobs:
    """Compute the log-softmax of the head's logits at ``targets`` and its entropy, ``chunk_size`` tokens at a time.

    logits = softcap(scale * (hidden @ weight.T + bias)) / temperature, with softcap(x) = softcap * tanh(x / softcap).
    Softmax and sums are in float32 (float64 for float64 input). Both results propagate gradients to ``hidden``, ``weight``
    and ``bias``; an input that needs no gradient (for example a frozen head with LoRA) adds no cost.

    Args:
        hidden: Last hidden state, after the final norm, at the position before each target.
        weight: Weight of the head.
        targets: Token ids.
        chunk_size: Number of tokens whose logits are in memory at the same time.
        temperature: Sampling temperature of the log-probabilities.
        bias: Bias of the head.
        scale: Factor on the logits (Cohere, Granite).
        softcap: Soft limit of the logits (Gemma 2).

    Returns:
        Log-probabilities and entropies, in float32 (or float64).

    Raises:
        ValueError: If ``chunk_size`` or ``temperature`` is not above 0.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, not {temperature}; greedy decoding has no log-probabilities"
        )
    if torch.is_autocast_enabled(hidden.device.type):  # so that forward and backward use the same numbers
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    factor = (1.0 if scale is None else scale) / temperature
    cap = None if softcap is None else softcap / temperature
    return TokenLogprobs(*_ChunkedLogprobs.apply(hidden, weight, bias, targets, chunk_size, factor, cap))


def logprobs_from_logits(
    logits: Float[Tensor, "*tokens vocabulary"], targets: Int[Tensor, "*tokens"], temperature: float = 1.0
) -> TokenLogprobs:
    """Compute the same results from full logits with ``log_softmax``; tests compare the chunked head with this function."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probabilities = torch.log_softmax(wide / temperature, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
    return TokenLogprobs(log_probabilities.gather(-1, targets[..., None]).squeeze(-1), entropy)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_size: int,
        factor: float,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = _wide(hidden.dtype)
        logprobs, entropy, normaliser = torch.empty(3, len(hidden), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), chunk_size):
            part = slice(start, start + chunk_size)
            logits = _logits(hidden[part], weight, bias, factor, cap)
            normaliser[part] = logits.logsumexp(dim=-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
            probabilities = (logits - normaliser[part, None]).exp_()
            entropy[part] = normaliser[part] - (probabilities.mul_(logits)).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.chunk_size, ctx.factor, ctx.cap = chunk_size, factor, cap
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Backpropagate; the gradient of the logits is grad_logprobs * (onehot - p) - grad_entropy * p * (log p + entropy)."""
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=normaliser.dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=normaliser.dtype) if needs_bias else None
        for start in range(0, len(hidden), ctx.chunk_size):
            part = slice(start, start + ctx.chunk_size)
            logits = _logits(hidden[part], weight, bias, ctx.factor, ctx.cap)
            slope = ctx.factor if ctx.cap is None else ctx.factor * (1 - (logits / ctx.cap).square())
            log_probabilities = logits.sub_(normaliser[part, None])
            grad = log_probabilities.exp()
            if grad_entropy is None:
                grad.mul_(-_column(grad_logprobs, part))
            else:
                surprise = log_probabilities.add_(entropy[part, None]).mul_(_column(grad_entropy, part))
                grad.mul_(surprise.add_(_column(grad_logprobs, part)).neg_())
            if grad_logprobs is not None:
                grad.scatter_add_(1, targets[part, None], grad_logprobs[part, None])
            grad = grad.mul_(slope)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden[part]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *(None,) * 4,
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _column(values: Tensor | None, part: slice) -> Tensor | float:
    return 0.0 if values is None else values[part, None]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: float, cap: float | None) -> Tensor:
    """Compute the logits of a chunk in a new tensor, in float32 or float64; the caller may modify it in place."""
    logits = torch.nn.functional.linear(hidden, weight).to(_wide(hidden.dtype))
    if bias is not None:
        logits += bias
    if factor != 1.0:
        logits *= factor
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
