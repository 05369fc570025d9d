"""Check that a resumed run reads the same data as the interrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rwml_lightning.data.loader import StepLoader
from rwml_lightning.data.source import Learns, SourceName

_KEYS = {
    ("predictions", "samples"): ("prompts_per_step", "transitions, num_transitions and the EasySampleFilter"),
    ("predictions", "labels"): ("prompts_per_step", "transitions, num_transitions and the EasySampleFilter"),
    ("episodes", "samples"): ("games_per_step", "splits and num_games, and data.environment"),
    ("episodes", "labels"): ("demonstrations.labels_per_step", "demonstrations"),
}
"""Config keys that set the number of items per step and select the items, by (source, type of training data)."""


def check_same_items(
    loader: StepLoader[Any, Any],
    saved: Mapping[str, Any],
    reads: SourceName,
    learns: Learns,
) -> None:
    """Check that the steps before a checkpoint read the same data as this run. More passes are allowed.

    Args:
        loader: Loader of this run.
        saved: ``state_dict`` of the loader that the checkpoint was saved with.
        reads: Source of the stage, for error messages.
        learns: Type of the stage's training data, for error messages.

    Raises:
        ValueError: Seed, batch size or items differ, or the passes end before the checkpoint's step.
    """
    size, items = _KEYS[reads, learns]
    own, keys = loader.state_dict(), {"seed": "seed_everything", "batch_size": f"data.{reads}.{size}"}
    instead = "restore the earlier setting, or start from the checkpoint's weights with model.init_from"
    for name in ("seed", "batch_size"):
        if own[name] != saved[name]:
            raise ValueError(
                f"{keys[name]} is {own[name]}, but was {saved[name]} when the checkpoint was saved: {instead}"
            )
    if own["items"] != saved["items"]:
        raise ValueError(
            f"the {own['num_items']} training items differ from the {saved['num_items']} items of the checkpoint; "
            f"they depend on data.{reads}.{items}: {instead}"
        )
    if saved["step"] > len(loader):
        raise ValueError(
            f"data.{reads}.num_passes is {loader.draw.num_passes}, so training ends after batch {len(loader)}, but the checkpoint was "
            f"saved after batch {saved['step']}: raise num_passes"
        )
