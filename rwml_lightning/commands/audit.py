"""``audit``: measure a config's reward on its transitions, with tables, a plot and JSON as results."""

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
    """Measure which differences between next states the reward detects. No language model is loaded.

    Args:
        configured: Config of the reward and the transitions. The same config reuses its folder; another config gets a new one.
        split: Split of the transitions from which the audit makes right and wrong next states.
        num_transitions: Maximum number of transitions, drawn at random with the config's seed; ``null`` uses all.
        output: Folder of the results; ``null`` means ``<run.root>/<run.name>-audit``.
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
    """Audit a reward, print the result, and write ``audit.json`` and ``audit.png``.

    Args:
        predictions: Reward and file of transitions. Object names and wrong next states come from the whole file.
        folder: Function that returns the folder of the results. It is called after the audit, and the folder is created.
        split: Split of the transitions from which the audit makes right and wrong next states.
        num_transitions: Maximum number of transitions, drawn at random with ``seed``; ``None`` uses all.
        seed: Seed of all random draws.

    Raises:
        ValueError: The file does not exist, or holds no transition of the split.
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
