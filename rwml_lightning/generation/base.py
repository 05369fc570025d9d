"""The interface of all generators, whatever their engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

from rwml_lightning.schema import Completion, Sampling


@runtime_checkable
class Generator(Protocol):
    """Generates completions of prompts. Input and output are token ids; no text is decoded and encoded again.

    The constructor loads nothing, so that a config is checked quickly; :meth:`start` loads the model.

    A completion depends only on weights, prompt, sampling settings and seed. The rest of the batch has an effect only
    through the rounding of matrix products, because their summation order depends on their shapes. Log-probabilities
    change by about 1e-5 in float32. A sampled token changes only if its uniform number is that close to a boundary
    between two tokens.

    Attributes:
        policy_version: Version passed to the last :meth:`update_weights`; 0 before the first.
        weights_digest: Digest (:mod:`rwml_lightning.functional.digest`) of the tensors of the last
            :meth:`update_weights`, computed where the engine holds them; ``None`` before the first.
        max_model_len: Maximum number of tokens of a prompt and its completion together; ``None`` for the limit of the
            model.
        elsewhere: Whether it has devices of its own, so that it can generate while the trainer updates the policy.
    """

    policy_version: int
    weights_digest: str | None
    max_model_len: int | None
    elsewhere: bool

    @property
    def weights_dtype(self) -> str:
        """Dtype of the engine's weights, such as ``bfloat16``. Starts the engine, which resolves ``auto``."""

    def start(self) -> None:
        """Load the model and start the engine, if it has not started. The other methods call this one."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        """Sample completions.

        Args:
            prompts: Token ids of each prompt.
            sampling: Temperature, nucleus (``top_p``), and maximum number of new tokens.
            seeds: For each prompt, one seed per completion.

        Returns:
            For each prompt, its completions in the order of its seeds. Log-probabilities are under the distribution
            that was sampled from; at temperature 0 they are under the distribution at temperature 1.

        Raises:
            ValueError: A prompt is empty, or a prompt plus ``max_tokens`` exceeds the context.
        """

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Compute the log-probability at temperature 1, in nats, of every token of each sequence except the first."""

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights.

        Args:
            named_tensors: All parameters and persistent buffers with merged adapters, under their names in
                transformers (:func:`rwml_lightning.weights.model_tensors`). Tied tensors appear once.
            version: Version of the weights, which is recorded in every later completion.
        """

    def attach(self, policy: nn.Module) -> bool:
        """Compute with the trainer's own module from now on, if this generator can. Returns whether it does."""

    def detach(self) -> None:
        """Release the module of :meth:`attach`, if there is one."""

    def sleep(self) -> None:
        """Free the accelerator's memory until the next :meth:`update_weights`, if this generator can."""

    def close(self) -> None:
        """Free the resources of :meth:`start`. This method can be called at any time, and more than once."""


class UnsupportedAdaptersError(ValueError):
    """A generator cannot compute with these adapters beside the base weights. The message is the reason."""


class AdapterGenerator(Generator, Protocol):
    """A generator that can compute with adapters beside base weights, so that an update sends the adapters alone.

    After :meth:`update_adapters`, ``weights_digest`` is the digest of base and adapters together.

    Attributes:
        base_digest: Digest of the base weights that the engine holds, which are the tensors of the last
            :meth:`update_weights`; ``None`` if it has to get them.
    """

    base_digest: str | None

    def keep_adapters(self, policy: nn.Module) -> bool:
        """Prepare for the adapters of this policy, if it has some and this generator can. Returns whether it does."""

    def update_adapters(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the adapters.

        Args:
            named_tensors: All tensors of the adapters (:func:`rwml_lightning.weights.adapter_tensors`).
            version: Version of the weights, which is recorded in every later completion.

        Raises:
            UnsupportedAdaptersError: The generator cannot compute with them.
        """

    def refuse_adapters(self, reason: str) -> None:
        """Forget all weights, and take merged ones from now on, because adapters do not work for this reason."""


def can_keep_adapters(generator: Generator) -> TypeGuard[AdapterGenerator]:
    """Whether a generator has the methods of :class:`AdapterGenerator`. Its properties, which start it, are not read."""
    return hasattr(generator, "keep_adapters")


class SeparateWeights:
    """Defaults of a generator that computes with a copy of the weights, and keeps it."""

    elsewhere = False

    def attach(self, policy: nn.Module) -> bool:
        return False

    def detach(self) -> None:
        pass

    def sleep(self) -> None:
        pass


def check_prompts(
    prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling, max_model_len: int
) -> None:
    """Check that a request is valid for any generator.

    Args:
        prompts: Token ids of each prompt.
        seeds: Seeds of the completions of each prompt.
        sampling: Sampling settings of the completions.
        max_model_len: Maximum number of tokens of a prompt and its completion together.

    Raises:
        ValueError: A setting is out of range, or a prompt is empty or too long. The message gives the prompt's index.
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
    """Check that training completions are sampled from the distribution that the trainer uses.

    The trainer computes log-probabilities under the full distribution. A nucleus (``top_p`` below 1) drops the tail, so
    that the ratio of trainer to generator is biased (0.92 on average at 0.9, 0.65 at 0.5). Greedy decoding has no
    log-probabilities at all.

    Args:
        sampling: Sampling settings of the training completions.
        key: Config key of the settings, for errors.

    Raises:
        ValueError: ``top_p`` is not 1, or the temperature is not above 0.
    """
    if sampling.top_p != 1:
        raise ValueError(
            f"{key}.top_p is {sampling.top_p}, but log-probabilities in training are those of all tokens; set it to 1. "
            "Evaluations have a separate top_p"
        )
    if not 0 < sampling.temperature < float("inf"):
        raise ValueError(
            f"{key}.temperature is {sampling.temperature}; training needs a temperature above 0. Evaluations have a "
            "separate temperature, which may be 0"
        )
