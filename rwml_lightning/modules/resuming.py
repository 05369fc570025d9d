"""Resume from a checkpoint: it restores weights, moments and counters; settings come from the config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override


def keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Load the moments of ``state`` and keep the configured learning rate and weight decay.

    This is a hook for ``register_load_state_dict_pre_hook``.

    Args:
        optimizer: Optimizer with the settings of the config.
        state: Optimizer state of a checkpoint.
    """
    groups = [
        {**configured, "params": saved["params"]}
        for configured, saved in zip(
            optimizer.state_dict()["param_groups"], state["param_groups"], strict=True
        )
    ]
    return {"state": state["state"], "param_groups": groups}


class LearningRate(LambdaLR):
    """Learning rate schedule that restores only the step from a checkpoint.

    A resumed run with more passes or another learning rate continues at that step of its new schedule.
    """

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        for group, learning_rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = learning_rate


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Mark the epoch in the loop state of a checkpoint as unfinished, so that the loader's position sets the steps left.

    In a checkpoint of the last step, or after a stop, the only epoch is finished, and Lightning would not take the
    remaining steps of a longer run.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    for counts in (fit_loop["epoch_progress"]["total"], fit_loop["epoch_progress"]["current"]):
        counts |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    fit_loop["epoch_loop.batch_progress"]["is_last_batch"] = False


def rng_states() -> dict[str, Tensor]:
    """Return the states of torch's random generators on the CPU and, if this process uses a GPU, on the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_rng(states: dict[str, Tensor]) -> None:
    """Restore the states from :func:`rng_states`; skip the GPU state if there is no GPU."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
