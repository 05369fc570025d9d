"""tau2-bench as a Gymnasium environment whose observations are chat messages."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium

from rwml_lightning.envs.chat import as_text
from rwml_lightning.envs.tau2.extra import import_engine
from rwml_lightning.envs.tau2.messages import (
    STOP,
    Action,
    CallFormat,
    read_action,
    shorten,
    write_action,
)

if TYPE_CHECKING:
    from rwml_lightning.envs.tau2.engine import Conversation, Reply

Messages = tuple[dict[str, str], ...]
_TEXT = gymnasium.spaces.Text(min_length=0, max_length=1 << 20)


class Tau2Env(gymnasium.Env[Messages, str]):
    """Customer service with tools (tau2-bench, arXiv 2506.07982) on its real engine, one conversation an episode.

    An observation is what is new to the agent since its last action: chat messages ``{"role": ..., "content": ...}`` of the roles
    ``user`` and ``tool``, at the beginning also of ``assistant``; alone it begins with the ticket. What the user does in private
    is not among them. An action is a
    text or a chat message (:func:`rwml_lightning.envs.tau2.messages.read_action`).

    ``info`` after ``reset`` holds ``task`` (the ticket of solo mode, else empty), ``instructions`` (the domain's policy), ``tools``
    (their schemas) and ``background`` (for who predicts the user, never for the agent: domain and who the user is, not what they
    want). After ``reset`` and ``step`` there are ``game`` (task id), ``task_type`` (domain), ``won``, ``measures`` (numbers of the
    episode so far, see below) and, in solo mode, ``admissible_actions`` (calls that need no arguments but what their schemas
    list). After ``step`` also, of the last action: ``action`` (its text in one fixed form), ``valid`` (it was read, and no call of it failed),
    ``kind`` (``tool`` or ``user``: whose answer the next state is; ``end`` without one), ``knowable`` (there is an answer) and
    ``next_state`` (the answer as a world model should predict it: tools' JSON as its schema). When the episode is over ``ended`` says why, as the benchmark names it.

    ``measures``: ``hops`` (messages, as the benchmark counts its steps), ``tool_calls`` of the agent and ``invalid_tool_calls``
    (share of them that failed), ``user_calls`` and ``user_tokens`` (what the user model cost), ``do_nothing`` (the reward of
    ending the episode at once).

    The reward comes at the end and is 0 or 1. ``terminated``: the user, or alone the agent, ended the conversation, the agent broke its rules (an
    empty message; text in solo mode) or made too many failing calls. ``truncated``: ``max_steps`` was reached. A user model that is
    down or answers nothing raises, since that is nobody's reward.

    Args:
        domain: ``airline``, ``retail``, ``telecom``, ``mock``, or several of them.
        splits: The benchmark's splits whose tasks are played; ids are ``<domain>/<task>``.
        solo: The agent plays alone, with the user's tools, from a ticket (``telecom`` and ``mock``).
        user: Who plays the user: ``scripted`` (no model, deterministic), or the arguments of
            :class:`rwml_lightning.envs.tau2.users.UserModel`.
        max_steps: Messages after which an episode is cut off (benchmark: 100, paper: 30, about 15 of the agent's).
        max_errors: Failed calls after which an episode is ended.
        calls: How ``walkthrough`` and ``info["action"]`` write tool calls: in the tags of chat templates, or as in Python.
        max_reply_chars: Longer parts of ``next_state`` are cut in the middle.

    Raises:
        ValueError: No such domain, split or mode, or bad settings of the user.
        ModuleNotFoundError: The engine is not installed; the message says how to.

    Example:
        >>> env = Tau2Env("mock", user="scripted")  # doctest: +SKIP
        >>> obs, info = env.reset(options={"task": "mock/create_task_1"})  # doctest: +SKIP
        >>> env.step('{"name": "get_users", "arguments": {}}')  # doctest: +SKIP
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - the base class types it so
    observation_space = gymnasium.spaces.Sequence(gymnasium.spaces.Dict(role=_TEXT, content=_TEXT))
    action_space = _TEXT

    def __init__(
        self,
        domain: str | Sequence[str] = ("airline", "retail", "telecom"),
        splits: Sequence[str] = ("train", "test"),
        solo: bool = False,
        user: Mapping[str, Any] | str = "scripted",
        max_steps: int = 100,
        max_errors: int = 10,
        calls: CallFormat = "json",
        max_reply_chars: int = 4000,
    ) -> None:
        for name, value in (("max_steps", max_steps), ("max_errors", max_errors), ("max_reply_chars", max_reply_chars)):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name}: {value} is not at least 1")
        if calls not in ("json", "python"):
            raise ValueError(f"calls: {calls!r} is neither 'json' nor 'python'")
        self._engine = import_engine("rwml_lightning.envs.tau2.engine")
        self.domains = (domain,) if isinstance(domain, str) else tuple(domain)
        for name in self.domains:
            _check_name("domain", name, self._engine.domains())
            if solo and name not in self._engine.SOLO_DOMAINS:
                raise ValueError(
                    f"solo: {name!r} has no solo mode; {', '.join(self._engine.SOLO_DOMAINS)} have"
                )
        self.splits = tuple(splits)
        self.solo = solo
        self.user = None if solo else self._read_user(user)
        self.max_steps = max_steps
        self.max_errors = max_errors
        self.calls: CallFormat = calls
        self.max_reply_chars = max_reply_chars
        self.tasks = self._list_tasks()
        self._conversation: Conversation | None = None

    def _read_user(self, user: Mapping[str, Any] | str) -> Any:
        if isinstance(user, str):
            if user != "scripted":
                raise ValueError(
                    f"user: {user!r} is neither 'scripted' nor a mapping such as {{model: NAME, base_url: ...}}"
                )
            return user
        try:
            return self._engine.UserModel(**user)
        except TypeError as error:
            raise ValueError(f"user: {str(error).removeprefix('UserModel.__init__() ')}") from error

    def _list_tasks(self) -> dict[str, tuple[str, ...]]:
        """Task ids by split, without those that this mode cannot play."""
        tasks: dict[str, tuple[str, ...]] = {}
        for split in self.splits:
            having = [name for name in self.domains if split in self._engine.splits_of(name)]
            if not having and split not in ("train", "test"):
                known = {one for name in self.domains for one in self._engine.splits_of(name)}
                _check_name("splits", split, sorted(known))
            ids = tuple(
                f"{name}/{task}"
                for name in having
                for task in self._engine.splits_of(name)[split]
                if self._engine.can_play(name, task, self.solo)
            )
            if ids:
                tasks[split] = ids
        return tasks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Messages, dict[str, Any]]:
        """Begin a conversation; with a user, the user speaks first, else there is a ticket.

        Args:
            seed: Seed of the user model, and of the draw of a task where ``options`` names none.
            options: ``{"task": id}`` names the task.

        Raises:
            ValueError: No such task.
            UserModelError: The user model does not answer.
        """
        super().reset(seed=seed)
        every = [task for ids in self.tasks.values() for task in ids]
        name = (options or {}).get("task") or every[int(self.np_random.integers(len(every)))]
        domain, _, task_id = name.partition("/")
        if domain not in self.domains or not self._engine.can_play(domain, task_id, self.solo):
            _check_name("task", name, every)
        self._domain, self._game = domain, name
        self._task = self._engine.tasks_of(domain)[task_id]
        user_seed = int(self.np_random.integers(1 << 31))
        self._conversation = self._engine.Conversation(
            domain, self._task, self.user, user_seed, self.max_steps, self.max_errors
        )
        self._num_calls = self._num_errors = 0
        messages = self._conversation.begin().messages
        ticket = (self._task.ticket or "").strip() if self.solo else ""
        if ticket:
            messages = ({"role": "user", "content": ticket},)
        info = self._info() | {
            "task": ticket,
            "instructions": self._conversation.policy,
            "tools": self._conversation.tools,
            "background": self._engine.background(domain, self._task, self.solo),
        }
        return messages, info

    def step(self, action: str | Mapping[str, Any]) -> tuple[Messages, float, bool, bool, dict[str, Any]]:
        """Say something or call tools, and hear the answer."""
        conversation = self._conversation
        assert conversation is not None, "reset() comes before step()"
        assert conversation.ended is None, "the episode is over: reset() comes before step()"
        meant = read_action(action)
        if self._breaks_rules(meant):
            reply = self._engine.Reply(())
            conversation.fail()
        else:
            reply = conversation.act(meant)
        self._num_calls += reply.num_calls
        self._num_errors += reply.num_errors
        over, truncated = conversation.ended is not None, conversation.was_cut_off
        reward = conversation.reward() if over else 0.0
        info = self._info(reward)
        info.update(
            action=write_action(meant, self.calls),
            valid=not (self._breaks_rules(meant) or reply.num_errors),
            kind=reply.messages[-1]["role"] if reply.messages else "end",
            knowable=bool(reply.messages),
            next_state=self._next_state(reply),
        )
        return reply.messages, reward, over and not truncated, truncated, info

    def walkthrough(self) -> tuple[str, ...]:
        """The reference solution of the current task as actions, for collecting data: calls of the agent, requests where the user
        is to act, at last what is to be communicated. Reward 1 with the scripted user, and alone."""
        assert self._conversation is not None, "reset() comes before walkthrough()"
        return tuple(
            write_action(action, self.calls) for action in self._engine.reference(self._task, self.solo)
        )

    def _breaks_rules(self, action: Action) -> bool:
        if action.calls:
            return False
        return not action.text or (self.solo and STOP not in action.text)

    def _next_state(self, reply: Reply) -> str:
        shown = [
            {"role": one["role"], "content": shorten(self._engine.predictable(one), self.max_reply_chars)}
            for one in reply.messages
        ]
        return as_text(shown) if shown else ""

    def _info(self, reward: float = 0.0) -> dict[str, Any]:
        conversation = self._conversation
        assert conversation is not None
        info = {
            "game": self._game,
            "task_type": self._domain,
            "won": reward > 0,
            "measures": self._measures(conversation),
        }
        if self.solo:
            info["admissible_actions"] = self._engine.simple_calls(self._domain, self.calls)
        if conversation.ended is not None:
            info["ended"] = conversation.ended.value
        return info

    def _measures(self, conversation: Conversation) -> dict[str, float]:
        user = conversation.user
        measures: dict[str, float] = {
            "hops": conversation.orchestrator.step_count,
            "tool_calls": self._num_calls,
            "do_nothing": self._engine.do_nothing_reward(self._domain, self._task.id),
        }
        if self._num_calls:
            measures["invalid_tool_calls"] = self._num_errors / self._num_calls
        if not self.solo:
            measures["user_calls"] = user.calls
            measures["user_tokens"] = user.prompt_tokens + user.completion_tokens
        return measures


def _check_name(key: str, name: str, known: Sequence[str]) -> None:
    """Raise a ValueError that names the nearest of the known names."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; nearest: {near[0]!r}" if near else f"; there are {', '.join(known[:8])}"
        raise ValueError(f"{key}: tau2-bench has no {name!r} here{hint}")
