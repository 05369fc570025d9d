"""Log-probabilities of trained tokens under any Hugging Face causal language model, packed and plain."""

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


OTHERS = "; docs/models.md lists the models that can"


class Head(NamedTuple):
    """What turns hidden states into logits: softcap(scale * (hidden @ weight.T + bias))."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None
    scale: float
    softcap: float | None


def packed_logprobs(
    model: nn.Module, micro: MicroBatch, temperature: float = 1.0, chunk_size: int = 512
) -> TokenLogprobs:
    """Log-probability and entropy of every trained token of a micro-batch, each distinct prefix computed once.

    Values and gradients are those of :func:`plain_logprobs`. Works in train mode and with gradient checkpointing;
    dropout must be 0 to be equal, for what is computed once is dropped once.

    Args:
        model: Causal language model, plain or wrapped by PEFT; call :func:`use_tree_attention` on it first for speed.
        micro: Packed sequences, on the model's device.
        temperature: Sampling temperature that the log-probabilities are for.
        chunk_size: Tokens whose logits exist at one time.

    Returns:
        One value a trained token, in the order of ``micro.sequence_index`` and ``micro.token_index``.

    Raises:
        ValueError: If the model has a head that is not linear, or a sequence is longer than its
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
    """The reference for :func:`packed_logprobs`: one padded batch, full logits, ``log_softmax``.

    Args:
        model: Causal language model, plain or wrapped by PEFT.
        sequences: Token ids, prompt and completion.
        trained_from: First trained token of each sequence, at least 1.
        temperature: Sampling temperature that the log-probabilities are for.

    Returns:
        One value a trained token: sequences in order, tokens from ``trained_from`` to the end.
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
    kept = longest - min(trained_from)  # positions from which the head is needed, the last one aside
    logits = lm(input_ids=input_ids, attention_mask=attended, use_cache=False, logits_to_keep=kept + 1).logits
    tokens = logprobs_from_logits(logits[:, :-1], input_ids[:, -kept:], temperature)
    return TokenLogprobs(*(values[trained[:, -kept:]] for values in tokens))


def verify_packing(model: nn.Module, tolerance: float | None = None) -> float:
    """Compare packed and plain log-probabilities of a few short sequences on the model itself.

    An architecture whose hidden states depend on more than a token's ancestors and depth (recurrence, ALiBi, its place
    in the row), or whose head has a step unknown here, is found out before training rather than trained wrongly; so is
    one that computes otherwise in train mode than when it samples (dropout). The sequences stand in a row with others,
    longer than a tile of attention and than the shortest window in use (GPT-Neo's 256 tokens).

    Args:
        model: As for :func:`packed_logprobs`, in the mode that it will be trained in.
        tolerance: Largest difference in nats; by default 0.001 in float32 and wider; 0.5 below, where rounding
            alone gives 0.2 on SmolLM2-135M in bfloat16.

    Returns:
        Largest difference seen, in nats.

    Raises:
        ValueError: If it is above ``tolerance``, train mode changes anything, the model takes no ``position_ids``, or its
            forward pass fails.
    """
    lm = causal_lm(model)
    name = type(lm).__name__
    if "position_ids" not in inspect.signature(decoder(lm).forward).parameters:
        raise ValueError(f"{name} takes no position_ids, so it cannot be trained as a prefix tree{OTHERS}")
    vocabulary = output_head(lm).weight.shape[0]
    stem = [(37 * i + 11) % vocabulary for i in range(12)]
    last = [*stem[:3], vocabulary - 1, *stem[:4]]  # stands behind all others that begin as it does
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
    except Exception as error:  # whatever a layer says to a mask that it does not know
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{name} cannot be trained as a prefix tree: its forward pass fails ({reason}){OTHERS}"
        ) from error
    finally:
        model.train(training)
    chance = float((as_trained - packed).abs().max())
    if not chance <= 1e-3:
        raise ValueError(
            f"{name} cannot be trained on what it samples: in train mode its log-probabilities change by {chance:.2g} "
            f"nats. Dropout or experts chosen at random do that{OTHERS}"
        )
    difference = float((packed[: len(plain)] - plain).abs().max())
    if tolerance is None:
        tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 0.5
    if not difference <= tolerance:
        raise ValueError(
            f"{name} cannot be trained as a prefix tree: its log-probabilities change by {difference:.2g} "
            f"nats (at most {tolerance:.2g} allowed). Recurrent layers, ALiBi or an unusual output head do that{OTHERS}"
        )
    return difference


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model itself, with adapters in place, inside what PEFT may have put around it."""
    if not hasattr(model, "get_base_model"):
        return cast("PreTrainedModel", model)
    wrapped = cast("PeftModel", model)
    if wrapped.active_peft_config.is_prompt_learning:
        raise ValueError("prompt tuning is not supported; use LoRA or another adapter on the layers")
    return cast("PreTrainedModel", wrapped.get_base_model())


def decoder(lm: PreTrainedModel) -> PreTrainedModel:
    """The part of a language model that gives hidden states: what stands before its output head."""
    found = lm.get_decoder()
    # transformers gives the whole model where it finds no decoder by name, as in Llama 4.
    return cast("PreTrainedModel", getattr(lm, "model", lm) if found is lm else found)


def output_head(lm: PreTrainedModel) -> Head:
    """Weights of the output head, and what the model does to its logits.

    Raises:
        ValueError: If the head is not a linear layer.
    """
    layer = lm.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or hasattr(layer, "base_layer"):
        raise ValueError(
            f"the output head of {type(lm).__name__} must be a linear layer without adapter, not a "
            f"{type(layer).__name__}; leave it out of LoRA's target_modules"
        )
    config = lm.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, layer.bias, scale, softcap)


def _check_length(lm: PreTrainedModel, longest: int) -> None:
    """All layers get one mask and all sequences one scale of positions, which is right up to the context limit."""
    limit = context_limit(lm.config)
    if limit is not None and longest > limit.tokens:
        raise ValueError(
            f"a sequence of {longest} tokens is longer than this model's {limit.name} of {limit.tokens}, "
            f"{limit.reason}; shorten prompts or completions"
        )
