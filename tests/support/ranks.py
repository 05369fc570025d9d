"""Every stage for three steps on prepared batches, as one of several processes: ``python -m support.ranks MODEL STRATEGY OUT``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rwml_lightning import parallel
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import PolicyGRPO, PolicySFT, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.schema import ActionSample, EpisodeBatch, Label, LabelledBatch
from rwml_lightning.weights import model_tensors
from support.plain_grpo import REWARDS, make_batch, make_episodes, with_version
from support.training import fit, make

LABELS = (
    Label("a", (5, 6, 7), (8, 9)), Label("b", (5, 6), (10,)), Label("c", (5, 6, 7), (8, 40, 41)), Label("d", (9,), (11, 12, 13, 14)),
)  # fmt: skip
ONE_GROUP = (REWARDS[0], (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
NO_GROUP = ((0.0, 0.0, 0.0),) * 3
LORA = LoRA(rank=4, alpha=8)


def stages(folder: Path) -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, module and batches of each case; the same in every process."""
    model = load_causal_lm(folder, "float32")
    common: dict[str, Any] = {"model": str(folder), "learning_rate": 1e-3}

    def rollouts(*rewards: Any, steps: int = 1) -> list[Any]:
        return [with_version(make_batch(model, row), steps * place) for place, row in enumerate(rewards)]

    yield "wm_grpo", make(WorldModelGRPO, **common, kl_coefficient=0.1), rollouts(*[REWARDS] * 3)
    yield "one micro-batch", make(WorldModelGRPO, **common), rollouts(*[REWARDS] * 3)
    small = {**common, "max_tokens_per_micro_batch": 8, "loss_normalisation": "token"}
    yield (
        "many micro-batches",
        make(WorldModelGRPO, **small, num_iterations=2),
        rollouts(*[REWARDS] * 3, steps=2),
    )
    yield "one group teaches", make(WorldModelGRPO, **small), rollouts(ONE_GROUP, REWARDS, ONE_GROUP)
    yield "no group teaches", make(WorldModelGRPO, **common), rollouts(REWARDS, NO_GROUP, REWARDS)
    yield "lora", make(WorldModelGRPO, **common, lora=LORA, kl_coefficient=0.1), rollouts(*[REWARDS] * 3)
    episodes = [played(model, step) for step in range(3)]
    yield "policy_grpo", make(PolicyGRPO, **common, world_model_weight=0.5), episodes
    for name, kind in (("wm_sft", WorldModelSFT), ("policy_sft", PolicySFT)):
        labelled = [LabelledBatch(0, LABELS), LabelledBatch(1, LABELS[:1]), LabelledBatch(2, LABELS[1:])]
        how = "sequence" if kind is PolicySFT else "token"
        yield name, make(kind, **common, loss_normalisation=how, max_tokens_per_micro_batch=6), labelled


def played(model: Any, step: int) -> EpisodeBatch:
    """Episodes of a policy of that version, with labels of next states."""

    def written(sample: ActionSample) -> ActionSample:
        return replace(sample, completion=replace(sample.completion, policy_version=step))

    batch = make_episodes(model)
    groups = tuple(
        replace(
            group, members=tuple(replace(m, samples=tuple(map(written, m.samples))) for m in group.members)
        )
        for group in batch.groups
    )
    return replace(batch, groups=groups, labels=LABELS[step:])


def num_bytes(module: Any) -> int:
    """Bytes of weights, gradients and moments that this process holds."""

    def held(value: Tensor) -> int:
        own = value.to_local() if isinstance(value, DTensor) else value
        return own.numel() * own.element_size()

    weights = list(module.policy.parameters())
    moments = [v for state in module.optimizers().optimizer.state.values() for v in state.values()]
    return 2 * sum(map(held, weights)) + sum(held(v) for v in moments if isinstance(v, Tensor))


def main(model: str, strategy: str, out: str) -> None:
    """Train every case, and write the weights, norms and bytes of each on the first rank."""
    torch.set_num_threads(1)
    torch.set_default_dtype(
        torch.float64
    )  # in float32 Adam makes whole steps of rounding where a gradient is about 0
    found: dict[str, Any] = {}
    for name, module, batches in stages(Path(model)):
        torch.manual_seed(0)
        module.dtype_name = "float64"
        module.check_precision = lambda precision: None
        how = {} if strategy == "one" else {"strategy": parallel.find_strategy(strategy), "devices": 2}
        steps = fit(module, batches, use_distributed_sampler=False, **({"devices": 1} | how))
        weights = dict(model_tensors(module.policy))
        norms = [metrics["train/grad_norm"] for metrics in steps.metrics]
        started = dict(model_tensors(load_causal_lm(model, "float64")))
        found[name] = {"start": started, "weights": weights, "norms": norms, "bytes": num_bytes(module)}
    if parallel.rank() == 0:
        torch.save(found, out)


def run(model: Path, strategy: str, out: Path, timeout: float = 240) -> dict[str, Any]:
    """Run :func:`main` in one process or two, and read what it wrote."""
    command = [sys.executable]
    if strategy != "one":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "support.ranks", str(model), strategy, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
