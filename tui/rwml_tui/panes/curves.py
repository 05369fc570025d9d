"""Live curves of the metrics of a run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from rwml_lightning.trace import Step, TraceReader
from rwml_tui.messages import reported
from rwml_tui.text import one_line

Curve = Sequence[tuple[int, float]]
PLOTS: Mapping[str, tuple[str, ...]] = {
    "reward": ("wm/reward", "policy/return", "val/accuracy"),
    "success": ("policy/success", "val/success"),
    "similarity": ("wm/similarity", "val/similarity", "val/world_model/similarity"),
    "exact": ("hacking/exact", "val/exact", "val/world_model/exact"),
    "actions": ("policy/invalid_actions", "policy/repeated_actions"),
    "groups without variance": ("wm/zero_variance_groups", "policy/zero_variance_groups"),
    "loss": ("train/loss",),
    "KL (nats)": ("train/kl",),
    "entropy (nats)": ("train/entropy",),
    "completion tokens": ("wm/completion_tokens", "policy/completion_tokens"),
    "seconds": ("time/generate", "time/env", "time/reward", "time/update", "time/wait", "time/sync"),
    "tokens a second": ("throughput/generated_tokens_per_s", "throughput/trained_tokens_per_s"),
    "gradient norm": ("train/grad_norm",),
}
"""Title of each plot, and the metrics that it shows if they were recorded."""
STYLES = ("cyan", "magenta", "yellow", "green", "red", "blue")
SMOOTHING = (0.0, 0.6, 0.9)


def smoothed(curve: Curve, weight: float) -> list[tuple[int, float]]:
    """Compute the exponential moving average of a curve, with bias correction at the start.

    Args:
        curve: (step, value) pairs. Values that are not finite are left out.
        weight: Weight of the earlier values, in [0, 1).
    """
    mean, total, found = 0.0, 0.0, []
    for step, value in curve:
        if math.isfinite(value):
            mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
            found.append((step, mean / total))
    return found


def logarithmic(curve: Curve) -> list[tuple[int, float]]:
    """Compute the decimal logarithm of the values above 0; the other values are left out."""
    return [(step, math.log10(value)) for step, value in curve if value > 0]


def thinned(curve: Curve, most: int = 240) -> list[tuple[int, float]]:
    """Reduce a curve to at most ``most`` points, the means of equal ranges: a terminal has no more columns."""
    size = math.ceil(len(curve) / most)
    parts = (curve[start : start + size] for start in range(0, len(curve), size or 1))
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


class CurvePlot(Vertical):
    """One plot with a title; the legend is in its border."""

    def __init__(self, title: str) -> None:
        super().__init__()
        from textual_plot import PlotWidget  # imports numpy, which the first frame does not need

        self.border_title = title
        self.plot = PlotWidget(allow_pan_and_zoom=False)
        self.plot.can_focus = False

    def compose(self) -> ComposeResult:
        """Yield the plot."""
        yield self.plot

    def draw(self, series: Mapping[str, Curve]) -> None:
        """Draw curves by name, in the order of :data:`STYLES`."""
        from textual_plot import HiResMode

        self.plot.clear()
        legend = Text()
        for number, (name, curve) in enumerate(series.items()):
            style = STYLES[number % len(STYLES)]
            last = f" {curve[-1][1]:.3g}" if curve else ""
            legend.append("  " if legend else "").append_text(one_line(name + last, style=style))
            if curve:
                steps, values = zip(*curve, strict=True)
                self.plot.plot(steps, values, line_style=style, hires_mode=HiResMode.BRAILLE)
        self.border_subtitle = legend


class Curves(VerticalScroll):
    """One plot per title of :data:`PLOTS`, in as many columns as fit.

    Args:
        readers: Runs by name. With several runs, the legend contains the run's name.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "logarithm", "log scale", tooltip="Show decimal logarithms or values"),
        Binding("m", "smooth", "smooth", tooltip="Change the strength of smoothing: none, 0.6, 0.9"),
    ]

    def __init__(self, readers: Mapping[str, TraceReader]) -> None:
        super().__init__()
        self.readers = readers
        self.until: Step | None = None
        self._plots: dict[str, CurvePlot] = {}
        self._logarithmic = False
        self._smoothing = 0
        self._nothing = Static("no step yet", id="nothing")

    def compose(self) -> ComposeResult:
        """Yield the text for an empty run; plots are added once there is data."""
        yield self._nothing

    async def reload(self) -> None:
        """Read the curves again and draw them."""
        paths = {name: reader.path for name, reader in self.readers.items()}
        with reported(self):
            await self._draw(await asyncio.to_thread(read_curves, paths, self.until))

    async def _draw(self, found: Mapping[str, Mapping[str, Curve]]) -> None:
        for title in PLOTS:
            if title in found and title not in self._plots:
                self._plots[title] = CurvePlot(title)
                await self.mount(self._plots[title])
        self._nothing.display = not self._plots
        for title, plot in self._plots.items():
            plot.draw({name: self._prepared(curve) for name, curve in found.get(title, {}).items()})
        scale = "log10" if self._logarithmic else ""
        smoothing = f"smoothed {SMOOTHING[self._smoothing]}" if self._smoothing else ""
        self.border_subtitle = "  ".join(filter(None, (scale, smoothing)))

    def _prepared(self, curve: Curve) -> list[tuple[int, float]]:
        prepared = smoothed(curve, SMOOTHING[self._smoothing])
        return thinned(logarithmic(prepared) if self._logarithmic else prepared)

    async def action_logarithm(self) -> None:
        """Switch between logarithms and values."""
        self._logarithmic = not self._logarithmic
        await self.reload()

    async def action_smooth(self) -> None:
        """Switch to the next strength of smoothing."""
        self._smoothing = (self._smoothing + 1) % len(SMOOTHING)
        await self.reload()

    def on_resize(self) -> None:
        """Set the number of columns that fit."""
        self.styles.grid_size_columns = max(self.size.width // 50, 1)


def read_curves(paths: Mapping[str, Path], until: Step | None = None) -> dict[str, dict[str, Curve]]:
    """Read the curves of all runs, by plot title and name; names are those of :func:`labelled`.

    Args:
        paths: Run stores by name.
        until: Last step to read from the first run. The other runs are read completely.
    """
    found: dict[str, dict[tuple[str, str, str], Curve]] = {}
    for run, path in paths.items():
        with TraceReader(path) as reader:
            for stage in reader.stages():
                known = set(reader.metric_names(stage.stage))
                for title, metrics in PLOTS.items():
                    curves = reader.metrics(stage.stage, [name for name in metrics if name in known])
                    for name, curve in curves.items():
                        if until is not None and stage.stage == until.stage:
                            curve = [point for point in curve if point[0] <= until.step]
                        found.setdefault(title, {})[run, stage.stage, name] = curve
                if until is not None and stage.stage == until.stage:
                    break
        until = None
    return {title: labelled(series) for title, series in found.items() if series}


def labelled(series: Mapping[tuple[str, str, str], Curve]) -> dict[str, Curve]:
    """Name curves by the parts of (run, stage, metric) in which they differ, or by the metric if they differ in none."""
    differ = [len({key[place] for key in series}) > 1 for place in range(3)]
    differ[2] |= not any(differ)
    return {" ".join(compress(key, differ)): curve for key, curve in series.items()}
