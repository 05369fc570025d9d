"""What a checkpoint may bring back: weights, moments and counters. Settings are the config's alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override


def keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Hook of ``register_load_state_dict_pre_hook``: take the moments of ``state``, and keep learning rate and weight decay.

    Args:
        optimizer: Made from the config.
        state: Optimizer state of a checkpoint.
    """
    groups = [
        {**own, "params": saved["params"]}
        for own, saved in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
    ]
    return {"state": state["state"], "param_groups": groups}


class LearningRate(LambdaLR):
    """A learning rate schedule of which a checkpoint restores the step alone: a run with more passes, or another learning
    rate, goes on where its own schedule would be."""

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        for group, learning_rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = learning_rate


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Let Lightning's loops of a checkpoint stand within their only epoch, so that the loader's position decides what is left.

    Saved at the last step, or after a stop, they say that the epoch is over, and a run that has steps left takes none.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    for counts in (fit_loop["epoch_progress"]["total"], fit_loop["epoch_progress"]["current"]):
        counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False


def rng_states() -> dict[str, Tensor]:
    """States of torch's random generators: the CPU's, and this process's GPU's where it uses one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_rng(states: dict[str, Tensor]) -> None:
    """Restore what :func:`rng_states` gave; the state of a GPU only where there is one."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
