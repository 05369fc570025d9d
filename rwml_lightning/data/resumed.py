"""Whether a run that is resumed reads what the interrupted one read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rwml_lightning.data.batches import StepLoader

_TRANSITIONS = {
    "batch_size": "data.prompts_per_step",
    "items": "data.transitions, data.num_transitions and the EasySampleFilter",
}
_KEYS = {
    "predictions": _TRANSITIONS,
    "labels": _TRANSITIONS,
    "episodes": {"batch_size": "data.play.games_per_step", "items": "data.environment and data.play"},
    "actions": {
        "batch_size": "data.prompts_per_step",
        "items": "data.demonstrations and data.prompts_per_step",
    },
}
"""The config's keys that decide what a step reads, by what the stage's module reads."""


def check_same_items(
    loader: StepLoader[Any, Any],
    saved: Mapping[str, Any],
    reads: Literal["predictions", "labels", "episodes", "actions"],
) -> None:
    """Refuse to count on from a checkpoint when the steps before it read something else; more passes are welcome.

    Args:
        loader: Of this run.
        saved: ``state_dict`` of the loader that the checkpoint was saved with.
        reads: What the stage's module reads, which says which keys of the config errors name.

    Raises:
        ValueError: Seed, batch size or items are others, or the passes end before the checkpoint's step.
    """
    own, keys = loader.state_dict(), {"seed": "seed_everything", **_KEYS[reads]}
    instead = "set it as it was, or start from the checkpoint's weights by model.init_from"
    for name in ("seed", "batch_size"):
        if own[name] != saved[name]:
            raise ValueError(
                f"{keys[name]} is {own[name]}, but was {saved[name]} when the checkpoint was saved: {instead}"
            )
    if own["items"] != saved["items"]:
        raise ValueError(
            f"training draws from {own['num_items']} items that are not the {saved['num_items']} of the checkpoint; "
            f"{keys['items']} decide which they are: {instead}"
        )
    if saved["step"] > len(loader):
        raise ValueError(
            f"data.num_passes is {loader.num_passes}, which ends after batch {len(loader)}, but the checkpoint was saved "
            f"after batch {saved['step']}: raise it"
        )
