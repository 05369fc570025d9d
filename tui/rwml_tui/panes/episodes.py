"""Episodes turn by turn: observation, thinking, action, and the prediction for the same turn."""

from __future__ import annotations

from array import array
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from rwml_lightning.schema import Episode, Turn
from rwml_lightning.trace import EpisodeSummary, TraceReader
from rwml_tui.messages import AskWhatIf, reported
from rwml_tui.screens.over_training import best
from rwml_tui.text import one_line, visible
from rwml_tui.widgets.group_view import thinking_text
from rwml_tui.widgets.text_pane import TextPane
from rwml_tui.widgets.virtual_table import Column, VirtualTable


def outcome(summary: EpisodeSummary) -> Text:
    """Describe how the episode ended, in one or two words."""
    if summary.success is None:
        return Text("ended" if not summary.truncated else "cut off")
    if summary.success:
        return Text("solved", "bold green")
    return Text("cut off" if summary.truncated else "failed", "red")


COLUMNS: tuple[Column[EpisodeSummary], ...] = (
    Column("step", "step", 6, lambda row: Text(str(row.step)), "right"),
    Column("stage", "stage", 12, lambda row: one_line(row.stage)),
    Column("source", "source", 8, lambda row: one_line(row.source)),
    Column("outcome", "outcome", 8, outcome),
    Column("return", "return", 7, lambda row: Text(f"{row.episode_return:.2f}"), "right"),
    Column("turns", "turns", 5, lambda row: Text(str(row.num_turns)), "right"),
    Column("kind", "kind", 14, lambda row: one_line(row.kind)),
    Column("game", "game", 20, lambda row: one_line(row.game, 200)),
)


def turn_text(number: int, turn: Turn, predicted: str | None, unfolded: bool) -> Text:
    """Format one turn; ``predicted`` is the best prediction of the next state after its action."""
    parts = [Text(f"{number + 1}", "bold"), visible(turn.observation)]
    parts += [thinking_text(turn.thinking, unfolded)]
    action = Text("> ", "bold").append_text(visible(turn.action, "bold" if turn.valid else "bold red"))
    if not turn.valid:
        action.append("  (not valid here)", "red")
    if turn.reward:
        action.append(f"  reward {turn.reward:g}", "green" if turn.reward > 0 else "red")
    parts += [action]
    if predicted is not None:
        parts += [Text("predicted: ", "italic").append_text(visible(predicted, "italic"))]
    return Text("\n").join(part for part in parts if part)


class Episodes(Vertical):
    """Shows the list of episodes of a run and the selected episode.

    Args:
        reader: The run.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "thinking", "thinking", tooltip="Unfold what the model thought, or fold it"),
        Binding("w", "what_if", "what if", tooltip="Try other actions than this episode: see the prediction and the real outcome"),
    ]  # fmt: skip

    def __init__(self, reader: TraceReader) -> None:
        super().__init__()
        self.reader = reader
        self.until: int | None = None
        self.thinking = False
        self.table = VirtualTable(
            COLUMNS, reader.episodes_by_id, lambda row: row.id, grow="game", id="episodes"
        )
        self.turns = TextPane("turns", id="turns")

    def compose(self) -> ComposeResult:
        """Yield the list and the turns."""
        yield self.table
        yield self.turns

    @work(thread=True, exclusive=True, group="episodes")
    def reload(self) -> None:
        """Read the list again."""
        with reported(self), TraceReader(self.reader.path) as reader:
            ids = reader.episode_ids()
            if self.until is not None:
                ids = array("q", (one for one in ids if one <= self.until))
            self.app.call_from_thread(self._show, ids)

    def _show(self, ids: array[int]) -> None:
        self.table.border_title = f"{len(ids):,} episodes" if len(ids) else "no episodes in this run yet"
        self.table.show(ids)

    @on(VirtualTable.Highlighted, "#episodes")
    def show_episode(self) -> None:
        """Show the episode under the cursor."""
        with reported(self):
            episode = None if self.table.selected is None else self.reader.episode(self.table.selected)
            self.turns.show(Text() if episode is None else self._text(episode))

    def _text(self, episode: Episode) -> Text:
        predicted = self._predicted(episode)
        turns = [turn_text(i, turn, predicted.get(i), self.thinking) for i, turn in enumerate(episode.turns)]
        head = visible(episode.task, "italic")
        return Text("\n\n").join([head, *turns, visible(episode.final_observation)])

    def _predicted(self, episode: Episode) -> dict[int, str]:
        """Return the best prediction of the newest group, for each turn that has predictions."""
        found: dict[int, str] = {}
        for number in range(len(episode.turns)):
            for group in self.reader.same_transition(f"{episode.episode_id}/{number}")[-1:]:
                prediction = best(self.reader.predictions(group.id))
                if prediction is not None:
                    found[number] = prediction.next_state or prediction.text
        return found

    def action_what_if(self) -> None:
        """Open the what-if screen at the episode's last turn; a key there goes back to earlier turns."""
        with reported(self):
            episode = None if self.table.selected is None else self.reader.episode(self.table.selected)
            if episode is not None:
                actions = [turn.action for turn in episode.turns[:-1]]
                self.post_message(
                    AskWhatIf({"place": {"game": episode.game, "seed": episode.seed, "actions": actions}})
                )

    def action_thinking(self) -> None:
        """Fold or unfold the thinking."""
        self.thinking = not self.thinking
        self.show_episode()
