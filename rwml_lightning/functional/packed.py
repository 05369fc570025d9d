"""Log-probabilities of trained tokens under a Hugging Face causal language model, packed and unpacked."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rwml_lightning.functional.attention import ancestor_mask, has_tree_attention
from rwml_lightning.functional.context import context_limit
from rwml_lightning.functional.logprobs import TokenLogprobs, chunked_logprobs, logprobs_from_logits
from rwml_lightning.functional.prefix_tree import MicroBatch, check_sequences, micro_batches

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


SUPPORTED = "; docs/models.md lists the supported models"


class Head(NamedTuple):
    """Output head, which maps hidden states to logits: softcap(scale * (hidden @ weight.T + bias))."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None
    scale: float
    softcap: float | None


def packed_logprobs(
    model: nn.Module, micro: MicroBatch, temperature: float = 1.0, chunk_size: int = 512
) -> TokenLogprobs:
    """Compute log-probability and entropy of every trained token in a micro-batch; each distinct prefix is computed once.

    Values and gradients equal those of :func:`plain_logprobs`. The function works in train mode and with gradient
    checkpointing. Dropout must be 0 for equal results, because sequences with a common prefix would share its dropout mask.

    Args:
        model: Causal language model, with or without a PEFT wrapper; call :func:`use_tree_attention` on it first for speed.
        micro: Packed sequences, on the device of the model.
        temperature: Sampling temperature of the log-probabilities.
        chunk_size: Number of tokens whose logits are in memory at the same time.

    Returns:
        One value per trained token, in the order of ``micro.sequence_index`` and ``micro.token_index``.

    Raises:
        ValueError: If the head of the model is not linear, or a sequence is longer than its
            :func:`~rwml_lightning.functional.context.context_limit`.
    """
    lm = causal_lm(model)
    head = output_head(lm)
    _check_length(lm, int(micro.position_ids.max()) + 1)
    if has_tree_attention(lm):
        mask = micro.subtree_end.view(1, 1, 1, -1)
    else:
        visible = ancestor_mask(micro.subtree_end)
        mask = torch.zeros(visible.shape, dtype=lm.dtype, device=visible.device)
        mask = mask.masked_fill_(~visible, torch.finfo(lm.dtype).min)[None, None]
    hidden = decoder(lm)(
        input_ids=micro.input_ids[None],
        attention_mask=mask,
        position_ids=micro.position_ids[None],
        use_cache=False,
    ).last_hidden_state[0]
    edges = chunked_logprobs(
        hidden.index_select(0, micro.edge_nodes),
        head.weight,
        micro.edge_targets,
        chunk_size=chunk_size,
        temperature=temperature,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
    )
    return TokenLogprobs(*(values.index_select(0, micro.edge_index) for values in edges))


def plain_logprobs(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    trained_from: Sequence[int],
    temperature: float = 1.0,
) -> TokenLogprobs:
    """Compute the reference results for :func:`packed_logprobs` with one padded batch, full logits and ``log_softmax``.

    Args:
        model: Causal language model, with or without a PEFT wrapper.
        sequences: Token ids of prompt and completion.
        trained_from: Index of the first trained token of each sequence, at least 1.
        temperature: Sampling temperature of the log-probabilities.

    Returns:
        One value per trained token: sequences in order, tokens from ``trained_from`` to the end.
    """
    check_sequences(sequences, trained_from)
    lm = causal_lm(model)
    longest = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long, device=lm.device)
    attended, trained = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for b, (sequence, first) in enumerate(zip(sequences, trained_from, strict=True)):
        input_ids[b, : len(sequence)] = torch.as_tensor(sequence, device=lm.device)
        attended[b, : len(sequence)] = 1
        trained[b, first : len(sequence)] = True
    kept = longest - min(trained_from)  # number of positions that predict a trained token
    logits = lm(input_ids=input_ids, attention_mask=attended, use_cache=False, logits_to_keep=kept + 1).logits
    tokens = logprobs_from_logits(logits[:, :-1], input_ids[:, -kept:], temperature)
    return TokenLogprobs(*(values[trained[:, -kept:]] for values in tokens))


def verify_packing(model: nn.Module, tolerance: float | None = None) -> float:
    """Compare packed and plain log-probabilities of a few short sequences under the model.

    This check rejects unsupported architectures before training: hidden states that depend on more than the ancestors and
    the depth of a token (recurrence, ALiBi, position in the row), heads with an unknown operation, and results in train mode
    that differ from those in sampling (dropout). The packed row also holds other sequences, so that it is longer than an
    attention tile and than the shortest window in use (256 tokens in GPT-Neo).

    Args:
        model: Model as for :func:`packed_logprobs`, in the mode used for training.
        tolerance: Largest allowed difference, in nats. The default is 0.001 in float32 and float64, and 0.5 in other dtypes,
            because rounding alone gives 0.2 on SmolLM2-135M in bfloat16.

    Returns:
        Largest difference, in nats.

    Raises:
        ValueError: If the difference is above ``tolerance``, train mode changes the results, the model takes no
            ``position_ids``, or its forward pass fails.
    """
    lm = causal_lm(model)
    name = type(lm).__name__
    if "position_ids" not in inspect.signature(decoder(lm).forward).parameters:
        raise ValueError(f"{name} takes no position_ids, so it cannot be trained as a prefix tree{SUPPORTED}")
    vocabulary = output_head(lm).weight.shape[0]
    stem = [(37 * i + 11) % vocabulary for i in range(12)]
    last = [*stem[:3], vocabulary - 1, *stem[:4]]  # sorts after all other sequences with the same prefix
    sequences = [stem[:8], stem, [*stem[:6], *stem[:4]], stem[5:], stem[5:], last]
    trained_from = [1, 4, 6, 2, 1, 3]
    others = [[*stem[:3], *((7 * i + 5 * k) % vocabulary for k in range(9))] for i in range(31)]
    (micro,) = micro_batches([*sequences, *others], [*trained_from, *[1] * len(others)], max_tokens=1000)
    micro = micro.to(lm.device)
    training = model.training
    try:
        with torch.no_grad():
            as_trained = packed_logprobs(model, micro).logprobs
            packed = packed_logprobs(model.eval(), micro).logprobs
            plain = plain_logprobs(model, sequences, trained_from).logprobs
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # layers raise various errors for a mask that they do not support
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{name} cannot be trained as a prefix tree: its forward pass fails ({reason}){SUPPORTED}"
        ) from error
    finally:
        model.train(training)
    chance = float((as_trained - packed).abs().max())
    if not chance <= 1e-3:
        raise ValueError(
            f"{name} cannot be trained on its samples: in train mode its log-probabilities change by {chance:.2g} "
            f"nats. The cause may be dropout or random routing of experts{SUPPORTED}"
        )
    difference = float((packed[: len(plain)] - plain).abs().max())
    if tolerance is None:
        tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 0.5
    if not difference <= tolerance:
        raise ValueError(
            f"{name} cannot be trained as a prefix tree: its log-probabilities change by {difference:.2g} "
            f"nats (at most {tolerance:.2g} allowed). The cause may be recurrent layers, ALiBi or an unusual output head"
            f"{SUPPORTED}"
        )
    return difference


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model, with adapter layers in place, without the PEFT wrapper."""
    if not hasattr(model, "get_base_model"):
        return cast("PreTrainedModel", model)
    wrapped = cast("PeftModel", model)
    if wrapped.active_peft_config.is_prompt_learning:
        raise ValueError("prompt tuning is not supported; use LoRA or another adapter on the layers")
    return cast("PreTrainedModel", wrapped.get_base_model())


def decoder(lm: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a language model that computes hidden states, without the output head."""
    found = lm.get_decoder()
    # transformers returns the whole model if it finds no decoder by name, as in Llama 4.
    return cast("PreTrainedModel", getattr(lm, "model", lm) if found is lm else found)


def output_head(lm: PreTrainedModel) -> Head:
    """Return the weights of the output head, and the scale and softcap of its logits.

    Raises:
        ValueError: If the head is not a linear layer.
    """
    layer = lm.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or hasattr(layer, "base_layer"):
        raise ValueError(
            f"the output head of {type(lm).__name__} must be a linear layer without an adapter, not a "
            f"{type(layer).__name__}; remove it from LoRA's target_modules"
        )
    config = lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, scale, softcap)


def _check_length(lm: PreTrainedModel, longest: int) -> None:
    """Check the context limit: one mask for all layers and one set of position frequencies are correct only up to it."""
    limit = context_limit(lm.config)
    if limit is not None and longest > limit.tokens:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than this model's {limit.name} of {limit.tokens}, "
            f"{limit.reason}; shorten prompts or completions"
        )
