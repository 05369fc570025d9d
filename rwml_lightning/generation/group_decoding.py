"""Decode groups of completions with any Hugging Face causal model; the prompt of a group is prefilled and stored once.

A decoding step feeds one new token of every unfinished member of every group. Rows are groups and queries are members.
The position id of a token is its index in the member's prompt and completion. The mask lets a member attend to the
prompt and to its own tokens. Finished members are not fed; when they own a quarter of the cache, it is repacked.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rwml_lightning.functional.context import context_limit
from rwml_lightning.generation.group_cache import GROUPED_SDPA, GroupCache
from rwml_lightning.generation.sampling import sample_tokens, uniforms
from rwml_lightning.schema import Completion, Sampling

SHARED = -2  # owner of a column that is visible to all members
NOBODY = -1  # owner of a padding column, and value of an empty slot
MASKED_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}  # a mask can express these
PREFILL_TOKENS = 8192  # maximum number of tokens of one prefill pass, with padding


@contextmanager
def decoding_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch to eval mode, no gradients, and attention that takes a mask; restore the previous state on exit.

    Inference mode would be wrong here: training could not use buffers that a model computes in its first forward pass.
    """
    training = [module for module in model.modules() if module.training]
    implementation = model.config._attn_implementation
    model.eval()
    if implementation != "eager" and model._supports_attention_backend:
        model.config._attn_implementation = GROUPED_SDPA
    try:
        with torch.no_grad():
            yield
    finally:
        model.config._attn_implementation = implementation
        for module in training:
            module.training = True


def check_decodable(model: PreTrainedModel, context: int) -> None:
    """Check that a mask over a plain cache can express the attention of the model.

    Args:
        model: Causal language model.
        context: Number of tokens of the longest prompt and its completion together.

    Raises:
        ValueError: The model has recurrent or other special layers, or the context exceeds its limit.
    """
    config = model.config.get_text_config()
    name = type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or ()) - MASKED_KINDS
    if kinds or model._is_stateful or "position_ids" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"HFGenerator cannot decode {name} (recurrent or other special layers): use VLLMGenerator"
        )
    limit = context_limit(config)
    if limit is not None and context > limit.tokens:
        raise ValueError(
            f"{context} tokens exceed the {limit.name} of {limit.tokens} of {name}, {limit.reason}; shorten prompts or "
            "max_tokens, or use VLLMGenerator"
        )


def decode_groups(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    end_tokens: Sequence[int],
    policy_version: int,
) -> list[list[Completion]]:
    """Sample the completions of all prompts in one batch; call it within :func:`decoding_mode`.

    Args:
        model: Causal language model.
        prompts: Token ids of each prompt. No prompt may be empty; similar lengths need the least padding.
        seeds: Seeds of the completions of each prompt.
        sampling: Sampling settings.
        end_tokens: Ids of the tokens that end a completion.
        policy_version: Version of the weights, which is recorded in the completions.

    Returns:
        For each prompt, its completions in the order of its seeds.
    """
    device = model.device
    sizes = [len(group) for group in seeds]
    num_samples, num_steps = sum(sizes), sampling.max_tokens
    slots = _first_slots(sizes).to(device)
    prompt_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).tolist()
    # Prefill omits the last prompt token, so that the first decoding step needs no special case.
    last = torch.tensor([prompts[prompt][-1] for prompt in prompt_of], device=device)
    depth = torch.tensor([len(prompts[prompt]) - 1 for prompt in prompt_of], device=device)
    uniform = uniforms([seed for group in seeds for seed in group], num_steps).to(device)
    tokens = torch.zeros(num_samples, num_steps, dtype=torch.long, device=device)
    logprobs = torch.zeros(num_samples, num_steps, device=device)
    num_tokens = torch.zeros(num_samples, dtype=torch.long, device=device)
    stopped = torch.zeros(num_samples, dtype=torch.bool, device=device)
    ends = torch.tensor(list(end_tokens), dtype=torch.long, device=device)

    longest = max(map(len, prompts))
    cache = GroupCache(len(prompts), capacity=longest + slots.shape[1] * min(num_steps, 64))
    owner = _prefill(model, cache, prompts)
    for step in range(num_steps):
        if slots.shape[1] == 0:
            break
        fed = slots.clamp(min=0)
        cache.place(slice(None), owner.shape[1])
        owner = torch.cat([owner, slots], dim=1)
        logits = model(
            input_ids=last[fed],
            position_ids=depth[fed] + step,
            attention_mask=_additive(_visible(owner, slots), model.dtype)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        member = slots >= 0
        sample = slots[member]
        token, logprob = sample_tokens(
            logits[member], uniform[sample, step], sampling.temperature, sampling.top_p
        )
        tokens[sample, step], logprobs[sample, step] = token, logprob
        last[sample], num_tokens[sample] = token, step + 1
        ended = torch.isin(token, ends)
        if ended.any():
            stopped[sample] = ended
            slots = _drop(slots, sample[ended])
            owner, slots = _repack(cache, owner, slots)

    records = [
        Completion(
            token_ids=tuple(ids[:length]),
            logprobs=tuple(values[:length]),
            finish_reason="stop" if stop else "length",
            policy_version=policy_version,
        )
        for ids, values, length, stop in zip(
            tokens.tolist(), logprobs.tolist(), num_tokens.tolist(), stopped.tolist(), strict=True
        )
    ]
    completions = iter(records)
    return [[next(completions) for _ in group] for group in seeds]


def _first_slots(sizes: Sequence[int]) -> Int[Tensor, "row query"]:
    """Return the index of the sample in each slot (query) of each row."""
    slots = torch.full((len(sizes), max(sizes)), NOBODY)
    first = 0
    for row, size in enumerate(sizes):
        slots[row, :size] = torch.arange(first, first + size)
        first += size
    return slots


def _prefill(
    model: PreTrainedModel, cache: GroupCache, prompts: Sequence[Sequence[int]]
) -> Int[Tensor, "row column"]:
    """Prefill the prompts without their last tokens; return the owner of each column."""
    prefixes = [list(prompt[:-1]) for prompt in prompts]
    longest = max(map(len, prefixes))
    owner = torch.full((len(prefixes), longest), NOBODY)
    for row, prefix in enumerate(prefixes):
        owner[row, : len(prefix)] = SHARED
    rows_per_pass = max(1, PREFILL_TOKENS // max(1, longest))
    for first in range(0, len(prefixes), rows_per_pass):
        batch = prefixes[first : first + rows_per_pass]
        width = max(map(len, batch))
        if width == 0:
            continue
        ids = torch.tensor([prefix + [0] * (width - len(prefix)) for prefix in batch], device=model.device)
        positions = torch.arange(width, device=model.device).expand(len(batch), -1)
        cache.place(slice(first, first + len(batch)), 0)
        # Padding is on the right, where causal attention hides it from the prompt.
        model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return owner.to(model.device)


def _visible(
    owner: Int[Tensor, "row column"], slots: Int[Tensor, "row query"]
) -> Bool[Tensor, "row query column"]:
    """Compute which columns are visible to each member: the prompt and its own tokens."""
    return (owner[:, None, :] == slots[:, :, None]) | (owner == SHARED)[:, None, :]


def _additive(
    visible: Bool[Tensor, "row query column"], dtype: torch.dtype
) -> Float[Tensor, "row query column"]:
    # Every attention implementation takes an additive mask; eager attention would add a Boolean mask as 0 and 1.
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )


def _drop(slots: Int[Tensor, "row query"], finished: Int[Tensor, " sample"]) -> Int[Tensor, "row fewer"]:
    """Remove finished samples from their slots and close the gaps."""
    slots = slots.masked_fill(torch.isin(slots, finished), NOBODY)
    empty = slots == NOBODY
    width = int((~empty).sum(1).max())
    return slots.gather(1, empty.to(torch.int8).argsort(dim=1, stable=True))[:, :width]


def _repack(
    cache: GroupCache, owner: Int[Tensor, "row column"], slots: Int[Tensor, "row query"]
) -> tuple[Int[Tensor, "kept_row kept_column"], Int[Tensor, "kept_row query"]]:
    """Drop finished groups and the columns of finished members if that frees at least a quarter of the cache."""
    rows = (slots != NOBODY).any(1).nonzero()[:, 0]
    kept_owner, kept_slots = owner[rows], slots[rows]
    live = _visible(kept_owner, kept_slots.masked_fill(kept_slots == NOBODY, SHARED)).any(1)
    width = int(live.sum(1).max()) if len(rows) else 0
    if not 0 < len(rows) * width <= owner.numel() * 3 // 4:
        return owner, slots
    columns = (~live).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    cache.keep(rows, columns)
    return kept_owner.masked_fill(~live, NOBODY).gather(1, columns), kept_slots
