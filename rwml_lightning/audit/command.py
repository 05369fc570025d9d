"""``audit``: what a config's reward sees on the transitions of its file, as tables, picture and JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rich.progress import track

from rwml_lightning.audit.measure import audit_reward
from rwml_lightning.audit.plot import plot_audit
from rwml_lightning.audit.report import print_audit, write_audit
from rwml_lightning.data.floors import floors_for
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.printable import printable
from rwml_lightning.rewards.base import NextStateReward
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal

Split = Literal["train", "validation", "all"]


def run_audit(
    reward: NextStateReward,
    transitions: Path,
    folder: Callable[[], Path],
    split: Split = "validation",
    num_transitions: int | None = None,
    on_broken: Literal["raise", "skip"] = "raise",
    seed: int = 0,
) -> None:
    """Audit a reward; print the result, and write ``audit.json`` and ``audit.png``.

    Args:
        reward: What is audited.
        transitions: Parquet file; names and other next states come from all of it.
        folder: Names the folder of the result, once there is one; it is made when it is not there.
        split: Transitions whose next states are varied.
        num_transitions: Most of them, a fixed random draw; ``None`` takes all.
        on_broken: See :func:`read_transitions`.
        seed: Everything drawn is a function of it.

    Raises:
        ValueError: No such file, or no transition in it of that split.
    """
    if not transitions.exists():
        raise ValueError(
            f"data.transitions names {transitions}, which does not exist; collect it: python -m rwml_lightning collect "
            "--config ..."
        )
    pool = read_transitions(transitions, on_broken)
    chosen = [transition for transition in pool if split in (transition.split, "all")]
    chosen.sort(key=lambda transition: derive_seed(seed, "audit", transition.transition_id))
    chosen = chosen[:num_transitions]
    if not chosen:
        raise ValueError(
            f"{transitions} holds no {split} transitions; --split takes train, validation or all"
        )
    progress = Terminal(stderr=True)
    audit = audit_reward(
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
    write_audit(audit, output / "audit.json", settings)
    plot_audit(audit, output / "audit.png", f"{type(reward).__name__} on {transitions.name}")
    print_audit(audit, Terminal())
    print(printable(f"Written: {output / 'audit.json'}, {output / 'audit.png'}"))
