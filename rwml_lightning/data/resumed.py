"""Whether a run that is resumed reads what the interrupted one read."""

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
"""Keys of a source that decide how many items a step has and which, by what the stage reads and learns from."""


def check_same_items(
    loader: StepLoader[Any, Any],
    saved: Mapping[str, Any],
    reads: SourceName,
    learns: Learns,
) -> None:
    """Refuse to count on from a checkpoint when the steps before it read something else; more passes are welcome.

    Args:
        loader: Loader of this run.
        saved: ``state_dict`` of the loader that the checkpoint was saved with.
        reads: Source of the stage, for errors.
        learns: What the stage learns from, for errors.

    Raises:
        ValueError: Seed, batch size or items are others, or the passes end before the checkpoint's step.
    """
    size, items = _KEYS[reads, learns]
    own, keys = loader.state_dict(), {"seed": "seed_everything", "batch_size": f"data.{reads}.{size}"}
    instead = "set it as it was, or start from the checkpoint's weights by model.init_from"
    for name in ("seed", "batch_size"):
        if own[name] != saved[name]:
            raise ValueError(
                f"{keys[name]} is {own[name]}, but was {saved[name]} when the checkpoint was saved: {instead}"
            )
    if own["items"] != saved["items"]:
        raise ValueError(
            f"training draws from {own['num_items']} items that are not the {saved['num_items']} of the checkpoint; "
            f"data.{reads}.{items} decide which they are: {instead}"
        )
    if saved["step"] > len(loader):
        raise ValueError(
            f"data.{reads}.num_passes is {loader.draw.num_passes}, which ends after batch {len(loader)}, but the checkpoint was saved "
            f"after batch {saved['step']}: raise it"
        )
