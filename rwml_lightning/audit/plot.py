"""Plot of an audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rwml_lightning.audit.candidates import Group
from rwml_lightning.audit.measure import TAUS, Audit, shares
from rwml_lightning.audit.report import GROUPS

_COLOURS: dict[Group, str] = {
    "rewording": "tab:green",
    "near miss": "tab:red",
    "other state": "tab:gray",
    "floor": "tab:blue",
}
_NEAREST_SHOWN = 1e-3


def plot_audit(audit: Audit, file: Path, title: str) -> None:
    """Plot distances by kind, share accepted over tau_d, and mean reward by kind, as PNG.

    For a reward without an embedder, the plot shows only the mean reward.
    """
    embeds = any(row.distances for row in audit.rows)
    figure = Figure(figsize=(15 if embeds else 7, 0.3 * len(audit.rows) + 1.8), layout="constrained")
    axes = figure.subplots(1, 3 if embeds else 1, squeeze=False)[0]
    if embeds:
        _plot_distances(axes[0], audit)
        _plot_rates(axes[1], audit)
    _plot_rewards(axes[-1], audit)
    figure.suptitle(title, parse_math=False)
    figure.savefig(file, dpi=110)


def _plot_distances(axes: Axes, audit: Audit) -> None:
    rows = [row for row in reversed(audit.rows) if row.distances]
    shown = [np.clip(row.distances, _NEAREST_SHOWN, None) for row in rows]
    labels = [f"{row.group}: {row.kind}" for row in rows]
    boxes = axes.boxplot(
        shown, orientation="horizontal", whis=(5, 95), showfliers=False, patch_artist=True, tick_labels=labels
    )  # fmt: skip
    for row, box in zip(rows, boxes["boxes"], strict=True):
        box.set_facecolor(_COLOURS[row.group])
    for line in boxes["medians"]:
        line.set_color("black")
    axes.set(xscale="log", xlim=(_NEAREST_SHOWN, 1.5), xlabel="cosine distance to the real next state")
    _mark_taus(axes, audit)


def _plot_rates(axes: Axes, audit: Audit) -> None:
    for group, colour in _COLOURS.items():
        if accepted := shares(audit.rows, group):
            axes.plot(TAUS, accepted, color=colour, label=GROUPS[group])
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="tau_d", ylabel="share accepted (mean of kinds)")
    _mark_taus(axes, audit)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _plot_rewards(axes: Axes, audit: Audit) -> None:
    rows = list(reversed(audit.rows))
    labels = [f"{row.group}: {row.kind}" for row in rows]
    axes.barh(labels, [row.reward for row in rows], color=[_COLOURS[row.group] for row in rows])
    axes.set(xlabel="mean reward as configured", xlim=(0, None))


def _mark_taus(axes: Axes, audit: Audit) -> None:
    axes.axvline(audit.tau_d, color="black", linewidth=1, label=f"tau_d as configured: {audit.tau_d:g}")
    if audit.choice is not None:
        label = f"best tau_d: {audit.choice.tau_d:g}"
        axes.axvline(audit.choice.tau_d, color="black", linewidth=1, linestyle="--", label=label)
