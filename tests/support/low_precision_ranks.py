"""LowPrecisionAdamW on shards, as one of several processes: ``python -m support.low_precision_ranks MODEL STRATEGY OUT``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rwml_lightning import parallel
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import LoRA, WorldModelSFT
from rwml_lightning.modules.adamw import LowPrecisionAdamW
from rwml_lightning.schema import LabelledBatch
from rwml_lightning.weights import model_tensors
from support.ranks import LABELS, num_bytes
from support.training import fit, make

CASES: dict[str, dict[str, Any]] = {
    "full": {"dtype": "bfloat16", "stochastic_rounding": True, "moments": "int8"},
    "lora": {"dtype": "bfloat16", "lora": LoRA(rank=4, alpha=8)},
}


def optimizer_steps(strategy: str) -> dict[str, Any]:
    """Weights and moments after three steps with the same gradients, whole or sharded over two ranks."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(5, 32, generator=generator).bfloat16() for _ in range(4))
    placed: Any = lambda tensor: tensor  # noqa: E731
    if strategy == "fsdp":
        torch.distributed.init_process_group("gloo")
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        placed = lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)])  # noqa: E731
    parameter = torch.nn.Parameter(placed(start))
    optimizer = LowPrecisionAdamW([parameter], lr=1e-2, moments="int8", seed=3)
    for gradient in gradients:
        parameter.grad = placed(gradient)
        optimizer.step()
    kept = {"weights": parameter.detach(), **optimizer.state[parameter]}
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in kept.items()
    }


def main(model: str, strategy: str, out: str) -> None:
    """Train each case for four steps, save, resume from two, and write weights and bytes on the first rank."""
    torch.set_num_threads(1)
    how: dict[str, Any] = {"devices": 1}
    found: dict[str, Any] = {"optimizer": optimizer_steps(strategy)}
    for name, settings in CASES.items():
        weights = []
        for steps in ((0, 4), (0, 2), (2, 4)):
            torch.manual_seed(0)
            module = make(WorldModelSFT, model=model, learning_rate=1e-3, **settings)
            if strategy != "one":
                how = {"strategy": parallel.find_strategy(strategy), "devices": 2}
            file = Path(f"{out}-{name}.ckpt")
            batches = [LabelledBatch(step, LABELS) for step in range(steps[1])]
            fit(module, batches, use_distributed_sampler=False, ckpt_path=file if steps[0] else None, **how)
            if steps == (0, 2):
                module.trainer.save_checkpoint(file)
            else:
                weights.append(dict(model_tensors(module.policy)))
        found[name] = {
            "whole": weights[0],
            "resumed": weights[1],
            "bytes": num_bytes(module),
            "start": dict(model_tensors(load_causal_lm(model, "bfloat16"))),
        }
    if parallel.rank() == 0:
        torch.save(found, out)


def run(model: Path, strategy: str, out: Path, timeout: float = 240) -> dict[str, Any]:
    """Run :func:`main` in one process or two, and read what it wrote."""
    command = [sys.executable]
    if strategy != "one":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "support.low_precision_ranks", str(model), strategy, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out, weights_only=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
