"""``audit``: what a config's reward sees on the transitions of its file, as tables, picture and JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.progress import track

from rwml_lightning.audit.measure import audit_reward
from rwml_lightning.audit.plot import plot_audit
from rwml_lightning.audit.report import print_audit, write_audit
from rwml_lightning.commands.configured import Configured
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.printable import printable
from rwml_lightning.run import open_run_folder
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal

Split = Literal["train", "validation", "all"]


def audit(
    configured: Configured,
    split: Split = "validation",
    num_transitions: int | None = None,
    output: str | None = None,
) -> None:
    """Show what the reward can and cannot see, before any training; no language model is loaded.

    Args:
        configured: Its reward is audited on its transitions; the same config finds its folder again, another one gets its own.
        split: Transitions whose next states are varied.
        num_transitions: Most of them, a fixed random draw; ``null`` takes all.
        output: Folder of the result; ``null`` takes ``<run.root>/<run.name>-audit``.
    """

    def folder() -> Path:
        if output is not None:
            return Path(output)
        run = replace(configured.run, name=f"{configured.run.name}-audit")
        return open_run_folder(run, configured.config).path

    data = configured.data
    run_audit(data.need_predictions(), folder, split, num_transitions, data.seed)


def run_audit(
    predictions: Predictions,
    folder: Callable[[], Path],
    split: Split = "validation",
    num_transitions: int | None = None,
    seed: int = 0,
) -> None:
    """Audit a reward; print the result, and write ``audit.json`` and ``audit.png``.

    Args:
        predictions: Reward that is audited, and the file of transitions; names and other next states come from all of it.
        folder: Names the folder of the result, once there is one; it is made when it is not there.
        split: Transitions whose next states are varied.
        num_transitions: Most of them, a fixed random draw; ``None`` takes all.
        seed: Everything drawn is a function of it.

    Raises:
        ValueError: No such file, or no transition in it of that split.
    """
    reward, transitions = predictions.need_reward(), predictions.path
    if not transitions.exists():
        raise ValueError(
            f"data.predictions.transitions names {transitions}, which does not exist; collect it: python -m rwml_lightning collect "
            "--config ..."
        )
    pool = read_transitions(transitions, predictions.on_broken)
    chosen = [transition for transition in pool if split in (transition.split, "all")]
    chosen.sort(key=lambda transition: derive_seed(seed, "audit", transition.transition_id))
    chosen = chosen[:num_transitions]
    if not chosen:
        raise ValueError(
            f"{transitions} holds no {split} transitions; --split takes train, validation or all"
        )
    progress = Terminal(stderr=True)
    found = audit_reward(
        reward, chosen, pool, floors_for(chosen, [t for t in pool if t.split == "train"]), seed,
        lambda starts: track(starts, f"{type(reward).__name__} on {len(chosen)} transitions", console=progress),
    )  # fmt: skip
    output = folder()
    output.mkdir(parents=True, exist_ok=True)
    settings = {
        "reward": type(reward).__name__,
        "transitions": str(transitions),
        "split": split,
        "seed": seed,
    }
    write_audit(found, output / "audit.json", settings)
    plot_audit(found, output / "audit.png", f"{type(reward).__name__} on {transitions.name}")
    print_audit(found, Terminal())
    print(printable(f"Written: {output / 'audit.json'}, {output / 'audit.png'}"))
