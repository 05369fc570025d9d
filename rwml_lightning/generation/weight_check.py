"""Bringing the trainer's weights to a generator, and proving that it computes with these and no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rwml_lightning.functional import combine_digests, digesting, tensor_digest
from rwml_lightning.generation.base import Generator
from rwml_lightning.generation.hf import HFGenerator


class WeightSyncError(RuntimeError):
    """The generator does not compute what the trainer computes."""


class Policy(Protocol):
    """What the check needs of the trainer's module."""

    @property
    def policy(self) -> nn.Module:
        """The model, plain or wrapped by PEFT."""

    @property
    def dtype_name(self) -> str:
        """Dtype of its weights."""

    def generator_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors as :func:`rwml_lightning.weights.model_tensors` gives them."""

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability of every token but the first, in nats."""


@dataclass(frozen=True)
class Precision:
    """What the dtypes of both sides let a comparison of log-probabilities see, in nats.

    Args:
        tolerance: Largest mean difference between two sides with the same weights.
        noticeable: A change of the trainer's log-probabilities that no generator can compute the old values to.
    """

    tolerance: float
    noticeable: float


EXACT = Precision(tolerance=0.01, noticeable=1e-4)
COARSE = Precision(tolerance=0.15, noticeable=0.05)


def precision_of(*dtypes: str) -> Precision:
    """Precision of a comparison between sides that compute in these dtypes."""
    return EXACT if set(dtypes) <= {"float32", "float64"} else COARSE


class WeightCheck:
    """Updates a generator and proves that the weights arrived.

    Three things are proved: that the generator took every bit of these tensors (by digest; a module that both sides share
    needs none), that it computes with them what the trainer computes, and that its results moved when the trainer's did.
    The last two take the log-probabilities of a fixed sequence. At the learning rates of reinforcement learning they
    alone could not tell a generator that is a few steps behind from rounding.

    Args:
        tolerance: Largest mean absolute difference of the log-probabilities, in nats; ``None`` takes what the dtypes that
            both sides compute in allow.
        num_tokens: Length of the fixed sequence.
    """

    def __init__(self, tolerance: float | None = None, num_tokens: int = 32) -> None:
        self.tolerance = tolerance
        self.num_tokens = num_tokens
        self._seen: tuple[Generator, list[int], list[float], list[float]] | None = None

    def update(
        self, generator: Generator, module: Policy, version: int, probe_ids: Sequence[int]
    ) -> float | None:
        """Give the generator the module's weights unless it has them.

        Args:
            generator: Gets the weights.
            module: Has them.
            version: Version of the weights.
            probe_ids: Token ids of a real text.

        Returns:
            Mean absolute difference of both sides' log-probabilities, in nats; ``None`` where nothing was to be done.

        Raises:
            WeightSyncError: The generator has other weights, or computes something else with them.
        """
        shared = isinstance(generator, HFGenerator) and generator.decodes_with(module.policy)
        if shared:
            generator.update_weights((), version)
        elif generator.policy_version == version and generator.weights_digest == _digest(
            module.generator_tensors()
        ):
            return None
        else:
            _send_weights(generator, module, version)
        return self._compare(generator, module, version, list(probe_ids[: self.num_tokens]))

    def _compare(self, generator: Generator, module: Policy, version: int, probe: list[int]) -> float:
        theirs, ours = generator.score([probe])[0], module.score(probe)
        precision = precision_of(module.dtype_name, generator.weights_dtype)
        tolerance = precision.tolerance if self.tolerance is None else self.tolerance
        gap = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)
        if not gap <= tolerance:  # so that NaN does not pass
            raise WeightSyncError(
                f"after the weight update at step {version} generator and trainer disagree on a fixed sequence by {gap:.4f} "
                f"nats a token (tolerance {tolerance:g}). Training would go on with another policy's samples. Do both load "
                "the same model?"
            )
        if self._seen is not None and self._seen[0] is generator and self._seen[1] == probe:
            _, _, earlier, unmoved = self._seen
            moved = max(abs(a - b) for a, b in zip(ours, earlier, strict=True))
            if theirs == unmoved:
                if moved > precision.noticeable:
                    raise WeightSyncError(
                        f"the weight update at step {version} changed the trainer's log-probabilities of a fixed sequence by "
                        f"up to {moved:.2g} nats and the generator's not at all: it computes with old weights"
                    )
                return gap  # small changes add up from when the generator's results last moved
        self._seen = (generator, probe, ours, theirs)
        return gap


def _send_weights(generator: Generator, module: Policy, version: int) -> None:
    digests: list[int] = []
    tensors = digesting(module.generator_tensors(), digests)
    generator.update_weights(tensors, version)
    for _ in tensors:
        pass  # what the generator did not ask for counts as well
    if generator.weights_digest != combine_digests(digests):
        raise WeightSyncError(
            f"the weight update at step {version} did not arrive: the digest of the tensors that {type(generator).__name__} "
            "took is not that of the trainer's. Training would go on with another policy's samples."
        )


def _digest(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in named_tensors)
