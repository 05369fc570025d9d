"""tau2-bench as a Gymnasium environment with chat messages as observations."""

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
    """Customer service with tools (tau2-bench, arXiv 2506.07982) on its real engine. One episode is one conversation.

    An observation contains the new chat messages since the agent's last action, ``{"role": ..., "content": ...}`` with the roles
    ``user`` and ``tool``. The first observation may also contain messages of the role ``assistant``; in solo mode it is the ticket.
    The user's own tool calls are not visible. An action is a text or a chat message
    (:func:`rwml_lightning.envs.tau2.messages.read_action`).

    ``info`` contains after ``reset``:

    - ``task``: the ticket in solo mode, else empty
    - ``instructions``: the domain's policy for the agent
    - ``tools``: schemas of the agent's tools
    - ``background``: domain and description of the user, without the user's goal; for the world model, never for the agent

    after ``reset`` and ``step``:

    - ``game``: task id
    - ``task_type``: domain
    - ``won``: whether the reward is above 0
    - ``measures``: numbers of the episode so far, see below
    - ``admissible_actions`` (only in solo mode): calls that have no required argument, or one with the values listed in its schema
    - ``ended`` (only after the end): reason for the end, as the benchmark names it

    and after ``step`` about the last action:

    - ``action``: the action as text in one fixed form
    - ``valid``: whether the action keeps the rules and none of its calls failed (an unreadable call counts as failed)
    - ``kind``: ``tool`` or ``user`` for the author of the next state; ``end`` if there is no answer
    - ``knowable``: whether there is an answer
    - ``next_state``: the answer as the world model should predict it, with the schema in place of a tool's JSON

    ``measures`` contains ``hops`` (number of messages, as the benchmark counts its steps), ``tool_calls`` (number of the agent's
    calls), ``invalid_tool_calls`` (share of these calls that failed), ``user_calls`` and ``user_tokens`` (calls and tokens of the user
    model) and ``do_nothing`` (the reward of ending the episode at once).

    The reward is 0 or 1 and comes at the end. An episode is ``terminated`` when the user (in solo mode the agent) ends the
    conversation, when the agent breaks the rules (an empty message, or text in solo mode), and after too many failed calls. It is
    ``truncated`` after ``max_steps`` messages. A user model that does not respond raises an error, since the agent must not be scored
    for that.

    Args:
        domain: One or several of ``airline``, ``retail``, ``telecom`` and ``mock``.
        splits: Splits of the benchmark to play. Task ids are ``<domain>/<task>``.
        solo: Whether the agent plays without a user, from a ticket and with the user's tools (``telecom`` and ``mock``).
        user: ``scripted`` for a deterministic user without a model, or the arguments of
            :class:`rwml_lightning.envs.tau2.users.UserModel`.
        max_steps: Number of messages after which an episode is truncated (benchmark: 100, paper: 30, about 15 of the agent).
        max_errors: Number of failed calls after which an episode is terminated.
        calls: Format of tool calls in ``walkthrough`` and ``info["action"]``: ``json`` in the tags of chat templates, or ``python``.
        max_reply_chars: Maximum length of each message in ``next_state``, in characters. Longer messages are cut in the middle.

    Raises:
        ValueError: The domain, split or mode does not exist, or the user's settings are invalid.
        ModuleNotFoundError: The engine is not installed. The message contains the command that installs it.

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
                    f"solo: {name!r} has no solo mode; domains with one: {', '.join(self._engine.SOLO_DOMAINS)}"
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
        """Return the task ids by split that can be played in this mode."""
        tasks: dict[str, tuple[str, ...]] = {}
        for split in self.splits:
            domains = [name for name in self.domains if split in self._engine.splits_of(name)]
            if not domains and split not in ("train", "test"):
                known = {one for name in self.domains for one in self._engine.splits_of(name)}
                _check_name("splits", split, sorted(known))
            ids = tuple(
                f"{name}/{task}"
                for name in domains
                for task in self._engine.splits_of(name)[split]
                if self._engine.can_play(name, task, self.solo)
            )
            if ids:
                tasks[split] = ids
        return tasks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Messages, dict[str, Any]]:
        """Begin a conversation with the user's first message, or in solo mode with the ticket.

        Args:
            seed: Seed of the user model, and of the draw of a task if ``options`` has none.
            options: ``{"task": id}`` chooses the task.

        Raises:
            ValueError: The task does not exist.
            UserModelError: The user model does not respond.
        """
        super().reset(seed=seed)
        all_tasks = [task for ids in self.tasks.values() for task in ids]
        name = (options or {}).get("task") or all_tasks[int(self.np_random.integers(len(all_tasks)))]
        domain, _, task_id = name.partition("/")
        if domain not in self.domains or not self._engine.can_play(domain, task_id, self.solo):
            _check_name("task", name, all_tasks)
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
        """Send a message or call tools, and return the answer."""
        conversation = self._conversation
        assert conversation is not None, "call reset() before step()"
        assert conversation.ended is None, "the episode is over: call reset() before step()"
        parsed = read_action(action)
        if self._breaks_rules(parsed):
            reply = self._engine.Reply(())
            conversation.fail()
        else:
            reply = conversation.act(parsed)
        self._num_calls += reply.num_calls
        self._num_errors += reply.num_errors
        over, truncated = conversation.ended is not None, conversation.was_cut_off
        reward = conversation.reward() if over else 0.0
        info = self._info(reward)
        info.update(
            action=write_action(parsed, self.calls),
            valid=not (self._breaks_rules(parsed) or reply.num_errors),
            kind=reply.messages[-1]["role"] if reply.messages else "end",
            knowable=bool(reply.messages),
            next_state=self._next_state(reply),
        )
        return reply.messages, reward, over and not truncated, truncated, info

    def walkthrough(self) -> tuple[str, ...]:
        """Return the reference solution of the current task as actions, for data collection.

        The actions are the agent's calls, requests for the user's actions, and a last message with the information to communicate.
        They give reward 1 with the scripted user and in solo mode.
        """
        assert self._conversation is not None, "call reset() before walkthrough()"
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
        return as_text(shown)

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
    """Raise a ValueError with the most similar known name if ``name`` is unknown."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; nearest: {near[0]!r}" if near else f"; available: {', '.join(known[:8])}"
        raise ValueError(f"{key}: tau2-bench has no {name!r} here{hint}")
