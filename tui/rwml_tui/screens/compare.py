"""Comparison of the predictions of several runs for one transition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from rwml_lightning.schema import Transition
from rwml_lightning.trace import GroupSummary, TraceReader
from rwml_tui.difference import mark_differences
from rwml_tui.screens.over_training import best
from rwml_tui.text import one_line, visible
from rwml_tui.widgets.group_table import reward_bar
from rwml_tui.widgets.text_pane import TextPane


class Compare(ModalScreen[None]):
    """Shows, side by side, the best prediction of each run's newest group for a transition, and the real next state.

    Args:
        readers: Runs by name.
        transition: Transition to compare.
        source: ``train`` or the name of an evaluation. A run without groups of this source shows its newest group of any.

    Raises:
        TraceError: A run cannot be read.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,v", "dismiss(None)", "back", key_display="esc", tooltip="Back to the list"),
    ]

    def __init__(self, readers: Mapping[str, TraceReader], transition: Transition, source: str) -> None:
        super().__init__()
        self.transition = transition
        self._texts: list[tuple[str, Text]] = []
        for name, reader in readers.items():
            group = newest(reader.same_transition(transition.transition_id), source)
            text = Text("never predicted in this run", "italic")
            self._texts.append(
                (name, text if group is None else group_text(reader, group, transition.next_state))
            )

    def compose(self) -> ComposeResult:
        """Yield the action, one pane per run, and the real next state."""
        with Vertical():
            yield Static(Text("> ").append_text(one_line(self.transition.action, 200)), markup=False)
            with Horizontal():
                for number, (name, text) in enumerate(self._texts):
                    pane = TextPane(name, id=f"run-{number}")
                    pane.show(text)
                    yield pane
            pane = TextPane("real", id="real")
            pane.show(visible(self.transition.next_state))
            yield pane
            yield Footer()


def newest(groups: list[GroupSummary], source: str) -> GroupSummary | None:
    """Return the last group of a source, or of all sources if this one has none."""
    same = [group for group in groups if group.source == source]
    return next(reversed(same or groups), None)


def group_text(reader: TraceReader, group: GroupSummary, real: str) -> Text:
    """Summarize a group: stage, step, source, rewards, and the best prediction with its differing words marked."""
    similarity = "-" if group.mean_similarity is None else f"{group.mean_similarity:.2f}"
    place = (
        one_line(group.stage).append(f" step {group.step}, ").append_text(one_line(group.source)).append("\n")
    )
    place.append(f"{reward_bar(group.rewards) if group.rewards else ''}  mean similarity {similarity}\n\n")
    prediction = best(reader.predictions(group.id))
    if prediction is None:
        return place
    if prediction.next_state is None:
        return place.append_text(visible(prediction.text, "dim"))
    return place.append_text(mark_differences(prediction.next_state, real)[0])
