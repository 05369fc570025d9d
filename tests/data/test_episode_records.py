"""What an environment may answer can be written, and is read back as it was: transition files and the run store."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwml_lightning.data.transitions import is_sample, read_transitions, write_transitions
from rwml_lightning.envs.boundary import read_reset, read_step
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition, Turn
from rwml_lightning.trace import TraceReader, TraceWriter

ANY = st.text(
    st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("\x00\n\ufeff "), max_size=6
)
OBSERVATIONS = ANY | st.lists(st.fixed_dictionaries({"role": ANY, "content": ANY}), max_size=2)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.booleans()
INFO = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("task", "background", "kind", "action", "next_state", "task_type"), ANY | st.none()),
        **dict.fromkeys(("valid", "knowable", "won"), st.booleans() | st.none()),
        "admissible_actions": st.lists(ANY, max_size=2),
        "measures": st.dictionaries(ANY, NUMBERS, max_size=2),
    },
)
RESETS = st.tuples(OBSERVATIONS, INFO)
STEPS = st.tuples(OBSERVATIONS, NUMBERS, st.booleans(), st.booleans(), INFO)
ACTIONS = st.text(string.ascii_letters, max_size=3)


def as_written(transition: Transition) -> Transition:
    """A transition file keeps of earlier turns what prompts show."""
    turns = tuple(Turn(turn.observation, turn.action) for turn in transition.history)
    return Transition(
        **{**{name: getattr(transition, name) for name in Transition.__slots__}, "history": turns}
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = tmp_path_factory.mktemp("records")
    return lambda name: folder / name


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(first=RESETS, steps=st.lists(st.tuples(ACTIONS, STEPS), min_size=1, max_size=3))
def test_what_passes_the_boundary_is_written_and_read_back(
    place: Callable[[str], Any], first: Any, steps: list[Any]
) -> None:
    state = EpisodeState.begin("g#0", read_reset(first))
    transitions = [state.advance(action, read_step(answer), "env") for action, answer in steps]
    episode = state.finish("env", "g", 1)
    samples = [one for one in transitions if is_sample(one)]
    write_transitions(place("t.parquet"), samples)
    assert read_transitions(place("t.parquet")) == [as_written(one) for one in samples]
    with TraceWriter(place("trace.db")) as writer:
        writer.start_stage("collect", 1, "")
        writer.write_step("collect", 1, episode.measures, [group_of(one) for one in transitions])
        writer.write_episodes("collect", 1, [episode])
    with TraceReader(place("trace.db")) as reader:
        (number,) = reader.episode_ids("collect")
        stored = reader.episode(number)
        found = [reader.group(one) for one in reader.group_ids()]
    assert stored is not None
    assert (stored.turns, stored.task, stored.kind) == (episode.turns, episode.task, episode.kind)
    assert (stored.final_observation, stored.success) == (episode.final_observation, episode.success)
    assert [one.transition for one in reversed(found) if one is not None] == transitions


def group_of(transition: Transition) -> Group:
    prediction = Prediction(
        Completion((1,), (0.0,), "stop", 0), "t", "", None, Score(0.0, None, False), 0.0, 0
    )
    return Group(transition, (1,), transition.observation, (prediction,))
