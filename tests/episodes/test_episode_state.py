"""An episode in progress, field by field, and what a model sees of it."""

from __future__ import annotations

from typing import Any

import pytest

from rwml_lightning.envs import Observation
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.view import View
from rwml_lightning.schema import Episode, Transition, Turn

TOOLS = ({"name": "look"},)
FIRST = Observation(
    "start",
    info={"task": "win", "admissible_actions": ["go", "wait"], "instructions": "Be kind.", "tools": TOOLS},
)
LATER = Observation(
    "end", 2.0, terminated=True,
    info={"admissible_actions": ["wait"], "won": True, "task_type": "easy", "measures": {"m": 1.0}, "task": "other"},
)  # fmt: skip


def test_a_state_begins_with_what_the_reset_answered() -> None:
    state = EpisodeState.begin("g#1", FIRST, ("go",))
    assert (state.episode_id, state.first, state.last, state.walkthrough) == ("g#1", FIRST, FIRST, ("go",))
    assert (state.turns, state.known_actions) == ([], {"go", "wait"})
    assert EpisodeState.begin("g#1", FIRST).walkthrough == ()
    assert state.view == View("win", (), "start", ("go", "wait"), FIRST.messages, "Be kind.", TOOLS)
    assert EpisodeState.begin("g#1", Observation("o")).view == View(
        "", (), "o", (), Observation("o").messages
    )


def test_a_state_goes_on_to_what_the_environment_answered() -> None:
    state = EpisodeState.begin("g#1", FIRST)
    transition = state.advance("go", LATER, "env", "thought", 3, "validation")
    assert transition == Transition(
        "g#1/0", "env", "g", "win", (), "start", "go", "end", "other", True, True, "validation"
    )
    assert state.turns == [Turn("start", "go", True, 2.0, "thought")]
    assert state.last is LATER
    assert state.known_actions == {"go", "wait"}
    assert state.view == View("win", tuple(state.turns), "end", ("wait",), LATER.messages, "Be kind.", TOOLS)
    assert state.finish("env", "game", 7) == Episode(
        "g#1", "env", "game", "win", 7, tuple(state.turns), "end", True, False, "easy", {"m": 1.0}
    )


def test_what_the_environment_says_of_a_step_counts() -> None:
    first = Observation("start", info={"background": "behind", "task": "win", "admissible_actions": ["go"]})
    said = {"action": "GO", "next_state": "The end.", "kind": "move", "valid": False, "knowable": False}
    state = EpisodeState.begin("#0", first)
    transition = state.advance("go", Observation("end", info=said), "env")
    assert transition == Transition(
        "#0/0", "env", "#0", "behind", (), "start", "GO", "The end.", "move", False, False, "train"
    )
    assert state.turns == [Turn("start", "GO", False, 0.0, "")]


@pytest.mark.parametrize(
    ("admissible", "action", "valid"), [(["go"], "go", True), (["go"], "wait", False), ([], "x", True)]
)
def test_an_action_is_valid_where_it_is_admissible_or_nothing_is_named(
    admissible: list[str], action: str, valid: bool
) -> None:
    state = EpisodeState.begin("g#0", Observation("o", info={"admissible_actions": admissible}))
    assert (
        state.advance(action, Observation("p", info={"admissible_actions": ["other"]}), "env").valid is valid
    )
    assert state.known_actions == {*admissible, "other"}


@pytest.mark.parametrize(("asked", "kept"), [({}, 8), ({"history_turns": 2}, 2), ({"history_turns": 0}, 0)])
def test_a_transition_has_the_last_turns(asked: dict[str, Any], kept: int) -> None:
    state = EpisodeState.begin("g#0", Observation("0"))
    for turn in range(1, 11):
        transition = state.advance(f"a{turn}", Observation(str(turn)), "env", **asked)
    assert transition.transition_id == "g#0/9"
    assert [turn.observation for turn in transition.history] == [str(n) for n in range(9 - kept, 9)]


@pytest.mark.parametrize(
    ("last", "success", "truncated"),
    [
        (Observation("o", truncated=True, info={"won": False}), False, True),
        (Observation("o", terminated=True, info={"won": 1}), True, False),
        (Observation("o"), None, True),
    ],
)
def test_how_an_episode_ended(last: Observation, success: bool | None, truncated: bool) -> None:
    state = EpisodeState.begin("g#0", FIRST)
    state.advance("go", last, "env")
    episode = state.finish("env", "g", 0)
    assert (episode.success, episode.truncated, episode.kind, episode.measures) == (
        success,
        truncated,
        "",
        {},
    )


class Plain:
    """Shows a chat as text, and marks what was quoted."""

    def quote(self, text: str) -> str:
        return f"<{text}>"

    def encode(self, system: str, messages: Any, tools: Any = ()) -> Any:
        return "chat", system, list(messages), tools

    def encode_user(self, system: str, user: str) -> Any:
        return "user", system, user

    def encode_reply(self, messages: Any) -> Any:
        return (9, *[message["content"] for message in messages])


FIELDS: dict[str, Any] = {
    "system": "{task} {instructions}", "user": "{task}|{history}|{observation}|{actions}", "reply": "{task}|{observation}|{actions}",
    "max_observation_chars": 6, "history_turns": 1,
}  # fmt: skip
VIEW = View(
    "T", (Turn("o1", "a1"), Turn("o2", "a2")), "0123456789", ("x", "y"),
    ({"role": "tool", "content": "abcdefghij"}, {"role": "user", "content": "Hi"}), "I", TOOLS,
)  # fmt: skip
SHORT, PAST = "<0123 ... 89>", "Past observation: <o2>\nPast action: <a2>\n"
SAID = [{"role": "tool", "content": "<abcd ... ij>"}, {"role": "user", "content": "<Hi>"}]


@pytest.mark.parametrize("so_far", [None, (1, 2)])
def test_a_window_is_written_anew_at_every_turn(so_far: Any) -> None:
    prompt: Any = ActionPrompt("window", **FIELDS)
    assert prompt.encode(Plain(), VIEW, so_far) == ("user", "<T> <I>", f"<T>|{PAST}|{SHORT}|<x, y>")
    alone: Any = ActionPrompt("window", **{**FIELDS, "history_turns": 0, "system": ""})
    assert alone.encode(Plain(), VIEW, so_far) == ("user", "", f"<T>||{SHORT}|<x, y>")


def test_a_conversation_begins_without_history_and_goes_on_with_replies() -> None:
    prompt: Any = ActionPrompt("conversation", **FIELDS)
    assert prompt.encode(Plain(), VIEW) == ("user", "<T> <I>", f"<T>||{SHORT}|<x, y>")
    assert prompt.encode(Plain(), VIEW, (1, 2)) == (1, 2, 9, f"<T>|{SHORT}|<x, y>")
    assert prompt.encode(Plain(), VIEW, (1, 9)) == (
        1,
        9,
        f"<T>|{SHORT}|<x, y>",
    )  # the end of a turn stands once


def test_a_chat_shows_the_environments_messages() -> None:
    prompt: Any = ActionPrompt("chat", **FIELDS)
    assert prompt.encode(Plain(), VIEW) == ("chat", "<T> <I>", SAID, TOOLS)
    assert prompt.encode(Plain(), VIEW, (1, 2)) == (1, 2, 9, "<abcd ... ij>", "<Hi>")
    silent = View("T", (), "o", ("x",))
    begun = [{"role": "user", "content": "<T>||<o>|<x>"}]
    assert prompt.encode(Plain(), silent) == ("chat", "<T> <>", begun, ())


class Checked(Plain):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def encode(self, system: str, messages: Any, tools: Any = ()) -> Any:
        self.seen.append((system, [message["role"] for message in messages]))

    def encode_reply(self, messages: Any) -> Any:
        self.seen.append([message["role"] for message in messages])


@pytest.mark.parametrize(
    ("layout", "replies"),
    [("window", []), ("conversation", [["user"]]), ("chat", [["user"], ["tool"], ["tool", "tool"]])],
)
def test_a_template_is_asked_for_what_the_layout_needs(layout: Any, replies: Any) -> None:
    for system in ("", "x"):
        chat: Any = Checked()
        ActionPrompt(layout, system=system).check(chat)
        assert chat.seen == [(system, ["user"]), *replies]


@pytest.mark.parametrize(
    ("field", "allowed"),
    [
        ("system", {"task", "instructions"}), ("user", {"task", "history", "observation", "actions"}),
        ("reply", {"task", "observation", "actions"}), ("answer", {"action", "thinking"}),
    ],
)  # fmt: skip
def test_each_template_takes_its_fields_and_no_other(field: str, allowed: set[str]) -> None:
    for name in ("task", "instructions", "history", "observation", "actions", "action", "thinking"):
        settings: Any = {field: f"{{{name}}}"}
        if name in allowed:
            assert getattr(ActionPrompt(**settings), field) == f"{{{name}}}"
        else:
            with pytest.raises(
                ValueError, match=rf"^prompt\.{field} contains the unknown field \{{{name}\}}; use only "
            ):
                ActionPrompt(**settings)
