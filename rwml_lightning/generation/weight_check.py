"""Send the trainer's weights to a generator, and verify that the generator computes with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor, nn

from rwml_lightning import parallel
from rwml_lightning.functional import combine_digests, digesting, tensor_digest
from rwml_lightning.generation.base import (
    AdapterGenerator,
    Generator,
    UnsupportedAdaptersError,
    can_keep_adapters,
)
from rwml_lightning.weights import adapter_tensors, base_tensors, base_versions, cast_weights


class WeightSyncError(RuntimeError):
    """The generator does not compute with the trainer's weights."""


class Policy(Protocol):
    """The part of the trainer's module that the check uses."""

    @property
    def policy(self) -> nn.Module:
        """The model, plain or wrapped by PEFT."""

    @property
    def dtype_name(self) -> str:
        """Dtype of the model's weights."""

    def generator_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the model, as :func:`rwml_lightning.weights.model_tensors` does."""

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Compute the log-probability in nats of every token except the first."""

    def trial_adapters(self) -> AbstractContextManager[None]:
        """Return a context in which the adapters are random, so that they have an effect."""


@dataclass(frozen=True)
class Precision:
    """Thresholds in nats for comparing log-probabilities of trainer and generator, which depend on their dtypes.

    Args:
        tolerance: Largest mean difference between trainer and generator with the same weights.
        noticeable: Change of the trainer's log-probabilities above which the generator's must change as well.
    """

    tolerance: float
    noticeable: float


EXACT = Precision(tolerance=0.01, noticeable=1e-4)
COARSE = Precision(tolerance=0.15, noticeable=0.05)


def precision_of(*dtypes: str) -> Precision:
    """Return the thresholds for a trainer and a generator with these dtypes."""
    return EXACT if set(dtypes) <= {"float32", "float64"} else COARSE


class WeightCheck:
    """Updates the weights of a generator and verifies that they arrived.

    A generator that keeps the base weights gets them once, and then the adapters alone, if it computes with random adapters
    what the trainer computes.

    It makes three checks. The digest shows that the generator received every bit of the tensors (not needed for a
    shared module). The log-probabilities of a fixed sequence show that the generator computes the same values as the
    trainer, and that they changed when the trainer's changed. At the learning rates of reinforcement learning,
    log-probabilities alone cannot distinguish a generator that is a few steps behind from rounding.

    Args:
        tolerance: Largest mean absolute difference of the log-probabilities in nats; ``None`` for the tolerance of the
            dtypes of trainer and generator.
        num_tokens: Length of the fixed sequence in tokens.
    """

    def __init__(self, tolerance: float | None = None, num_tokens: int = 32) -> None:
        self.tolerance = tolerance
        self.num_tokens = num_tokens
        self._base: tuple[tuple[ref[nn.Module], str, list[tuple[int, int]]], str] | None = None
        self._last: tuple[Generator, list[int], list[float], list[float]] | None = None

    def update(
        self, generator: Generator, module: Policy, version: int, probe_ids: Sequence[int]
    ) -> float | None:
        """Send the weights of the module to the generator unless it has them.

        Args:
            generator: Generator to update.
            module: Module with the weights.
            version: Version of the weights.
            probe_ids: Token ids of a real text.

        Returns:
            Mean absolute difference of the log-probabilities of trainer and generator in nats; ``None`` if the
            generator had the weights already.

        Raises:
            WeightSyncError: The generator has other weights, or computes other log-probabilities with them.
        """
        probe = list(probe_ids[: self.num_tokens])
        if generator.attach(module.policy):
            generator.update_weights((), version)
        elif not self._bring(generator, module, version, probe):
            return None
        return self._compare(generator, module, version, probe)

    def _bring(self, generator: Generator, module: Policy, version: int, probe: list[int]) -> bool:
        """Send what the generator lacks. Returns whether it lacked anything."""
        if can_keep_adapters(generator) and _all_keep_adapters(generator, module):
            try:
                return self._send_adapters(generator, module, version, probe)
            except UnsupportedAdaptersError as error:
                generator.refuse_adapters(str(error))
        if generator.policy_version == version and generator.weights_digest == _digest(
            _tensors(generator, module)
        ):
            return False
        _send_weights(generator, module, version)
        return True

    def _send_adapters(
        self, generator: AdapterGenerator, module: Policy, version: int, probe: list[int]
    ) -> bool:
        base = self._base_digest(generator, module)
        adapters = list(adapter_tensors(module.policy))
        digest = combine_digests([int(base, 16), *(tensor_digest(*named) for named in adapters)])
        if generator.policy_version == version and generator.weights_digest == digest:
            return False
        if generator.base_digest != base:
            generator.update_weights(_base_tensors(generator, module), version)
            reasons = parallel.gather(self._try_adapters(generator, module, version, probe))
            if any(reasons):
                raise UnsupportedAdaptersError(next(reason for reason in reasons if reason))
        generator.update_adapters(adapters, version)
        if generator.weights_digest != digest:
            raise _lost(generator, version)
        return True

    def _try_adapters(
        self, generator: AdapterGenerator, module: Policy, version: int, probe: list[int]
    ) -> str | None:
        """Check on random adapters that the generator computes as the trainer does. New adapters would not show it.

        Returns:
            Why this rank's generator cannot take adapters; ``None`` if it can.
        """
        (base,) = generator.score([probe])
        with (
            module.trial_adapters()
        ):  # what is collective comes first, since a generator may refuse on one rank alone
            adapters, trained = list(adapter_tensors(module.policy)), module.score(probe)
            try:
                generator.update_adapters(adapters, version)
            except UnsupportedAdaptersError as error:
                return str(error)
            (generated,) = generator.score([probe])
        gap, effect = _distance(generated, trained), _distance(trained, base)
        tolerance = precision_of(module.dtype_name, generator.weights_dtype).tolerance
        if not gap <= min(tolerance, 0.5 * effect):
            return f"with random adapters, its log-probabilities differ from the trainer's by {gap:.4f} nats a token"
        return None

    def _base_digest(self, generator: Generator, module: Policy) -> str:
        """Compute the digest of the base weights, which no step changes, once."""
        now = (ref(module.policy), generator.weights_dtype, base_versions(module.policy))
        if self._base is None or self._base[0] != now:
            self._base = now, _digest(_base_tensors(generator, module))
        return self._base[1]

    def _compare(self, generator: Generator, module: Policy, version: int, probe: list[int]) -> float:
        generated, trained = generator.score([probe])[0], module.score(probe)
        precision = precision_of(module.dtype_name, generator.weights_dtype)
        tolerance = precision.tolerance if self.tolerance is None else self.tolerance
        gap = _distance(trained, generated)
        if not gap <= tolerance:  # also true for NaN
            raise WeightSyncError(
                f"after the weight update at step {version} generator and trainer disagree on a fixed sequence by {gap:.4f} "
                f"nats a token (tolerance {tolerance:g}), so training would use samples of another policy: check that both "
                "load the same model"
            )
        if self._last is not None and self._last[0] is generator and self._last[1] == probe:
            _, _, last_trained, last_generated = self._last
            change = max(abs(a - b) for a, b in zip(trained, last_trained, strict=True))
            if generated == last_generated:
                if change > precision.noticeable:
                    raise WeightSyncError(
                        f"the weight update at step {version} changed the trainer's log-probabilities of a fixed sequence by "
                        f"up to {change:.2g} nats and the generator's not at all: the generator computes with old weights"
                    )
                return gap  # keep the last values, so that small changes add up until the generator's values change
        self._last = (generator, probe, trained, generated)
        return gap


def _send_weights(generator: Generator, module: Policy, version: int) -> None:
    digests: list[int] = []
    tensors = digesting(_tensors(generator, module), digests)
    generator.update_weights(tensors, version)
    for _ in tensors:
        pass  # add the tensors that the generator has not read to the digest
    if generator.weights_digest != combine_digests(digests):
        raise _lost(generator, version)


def _all_keep_adapters(generator: AdapterGenerator, module: Policy) -> bool:
    """Decide with the other ranks, since the tensors of a sharded policy are gathered by all."""
    kept = parallel.gather(generator.keep_adapters(module.policy))
    if any(kept) and not all(kept):
        generator.refuse_adapters("the engine of another rank cannot")
    return all(kept)


def _distance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def _lost(generator: Generator, version: int) -> WeightSyncError:
    return WeightSyncError(
        f"the weight update at step {version} did not arrive: the digest of the tensors that {type(generator).__name__} "
        "took differs from the digest of the trainer's tensors, so training would use samples of another policy"
    )


def _base_tensors(generator: Generator, module: Policy) -> Iterator[tuple[str, Tensor]]:
    dtype = getattr(torch, generator.weights_dtype)
    return cast_weights(module.policy, base_tensors(module.policy), dtype)


def _tensors(generator: Generator, module: Policy) -> Iterator[tuple[str, Tensor]]:
    dtype = getattr(torch, generator.weights_dtype)
    return cast_weights(module.policy, module.generator_tensors(), dtype)


def _digest(named_tensors: Iterable[tuple[str, Tensor]]) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in named_tensors)
