"""What every generator promises, whichever engine is behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from rwml_lightning.schema import Completion, Sampling


@runtime_checkable
class Generator(Protocol):
    """Writes completions to prompts, token ids in and token ids out: nothing is decoded and encoded again.

    Constructing one loads nothing, so that a config can be checked at once; :meth:`start` does the work.

    A completion is a function of weights, prompt, sampling and seed alone. What else is in the batch enters only by
    the rounding of matrix products, whose summation order depends on their shapes: log-probabilities move by about
    1e-5 in float32, and a sampled token changes only where its uniform number falls within that of a boundary.

    ``policy_version`` is the version given to the last :meth:`update_weights`, 0 before any. ``weights_digest`` is the
    digest (:mod:`rwml_lightning.functional.digest`) of the tensors that it took then, computed where the engine holds
    them; ``None`` before any. ``max_model_len`` is the most tokens of a prompt and its completion together; ``None``
    leaves it to the model.
    """

    policy_version: int
    weights_digest: str | None
    max_model_len: int | None

    @property
    def weights_dtype(self) -> str:
        """Dtype that the engine computes in, such as ``bfloat16``; starts it, for ``auto`` is known only then."""

    def start(self) -> None:
        """Load what is needed; does nothing when already started. The other methods call it themselves."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Sample completions.

        Args:
            prompts: Token ids of each prompt.
            sampling: Temperature, nucleus, and most new tokens.
            seeds: For each prompt, the seed of each of its completions; their number is that of its completions.

        Returns:
            For each prompt its completions, in the order of its seeds. Log-probabilities are those of the
            distribution sampled from; where that is a single token (temperature 0), those at temperature 1.

        Raises:
            ValueError: An empty prompt, or one that does not fit the context together with ``max_tokens``.
        """

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability, at temperature 1, of every token but the first of each sequence, in nats."""

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights.

        Args:
            named_tensors: All parameters and persistent buffers, adapters merged, under the names that the model has in
                transformers (:func:`rwml_lightning.weights.model_tensors`); of tied ones, one.
            version: Stamped on every completion from now on.
        """

    def close(self) -> None:
        """Free what :meth:`start` took; may be called twice, and at any time."""


def check_prompts(
    prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling, max_model_len: int
) -> None:
    """Refuse what no generator can answer, naming the prompt.

    Args:
        prompts: Token ids of each prompt.
        seeds: Seeds of each prompt's completions.
        sampling: How they are to be sampled.
        max_model_len: Most tokens of a prompt and its completion together.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but seeds for {len(seeds)}")
    if sampling.max_tokens < 1 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
        raise ValueError(f"need max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not {sampling}")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {index} is empty")
        if len(prompt) + sampling.max_tokens > max_model_len:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; with max_tokens={sampling.max_tokens} it exceeds the "
                f"context of {max_model_len} (max_model_len): shorten the history or lower max_tokens"
            )


def check_trainable(sampling: Sampling, key: str) -> None:
    """Refuse to sample what is trained on from another distribution than the one whose log-probabilities are trained.

    The trainer computes those of the whole distribution. A nucleus (``top_p`` below 1) drops its tail, so that the ratio of
    both is biased (0.92 on average at 0.9, 0.65 at 0.5), and greedy decoding has no log-probabilities at all.

    Args:
        sampling: How completions that are trained on are made.
        key: Name of the setting, for errors.

    Raises:
        ValueError: A nucleus, or a temperature that is not above 0.
    """
    if sampling.top_p != 1:
        raise ValueError(
            f"{key}.top_p is {sampling.top_p}, but log-probabilities in training are those of all tokens; leave it at 1. "
            "Evaluations have a top_p of their own"
        )
    if not 0 < sampling.temperature < float("inf"):
        raise ValueError(
            f"{key}.temperature is {sampling.temperature}; training samples at a temperature above 0. Evaluations have "
            "their own, which may be 0"
        )
