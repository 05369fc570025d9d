"""A bounded pool of processes that steps many text environments at once.

Failures are records, never rewards: what raised, hung or died is reported for its slots, and replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import gymnasium

from rwml_lightning.envs.boundary import Observation, read_reset, read_step, read_walkthrough
from rwml_lightning.envs.make import EnvironmentSpec
from rwml_lightning.envs.worker import Worker, WorkerError, collect

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Failure:
    """A slot whose episode is lost; it must be reset, and the episode must not be scored.

    Args:
        reason: ``raised`` (also what an environment may not answer), ``timeout`` or ``died``: this environment failed.
            ``lost``: it shared a process with one that did, and may be tried again without suspicion.
        error: For people; what went wrong is the first line.
    """

    reason: Literal["raised", "timeout", "died", "lost"]
    error: str

    @property
    def line(self) -> str:
        """What went wrong, in one line."""
        return self.error.splitlines()[0]


Result = Observation | Failure


class EnvironmentPool:
    """Steps environments in worker processes; a context manager.

    A slot is a place for one running episode, numbered from 0 by the caller; slot ``i`` lives in worker ``i % num_workers``.
    A worker that hangs or dies is killed with all its slots. One whose environment raised, or that has begun
    ``max_episodes_per_worker`` episodes, takes no new episode: it ends when its running ones have, while a fresh one takes
    its place. So there are at most twice ``num_workers`` processes, and as a rule ``num_workers``.

    Not for use from several threads at once.

    Args:
        spec: What to make; each slot has its own environment, kept from episode to episode while all goes well.
        num_workers: Worker processes.
        step_timeout_s: Most seconds for a step or a walkthrough.
        reset_timeout_s: Most seconds for a reset (which may make the environment and load a game); by default
            120, or those for a step where they are more.
        max_episodes_per_worker: Episodes after which a worker is replaced (against leaks in native code).
        start_timeout_s: Most seconds until a worker process is there.

    Raises:
        ValueError: A limit that is not positive.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_workers: int = 2,
        step_timeout_s: float = 30.0,
        max_episodes_per_worker: int = 500,
        reset_timeout_s: float | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        if reset_timeout_s is None:
            reset_timeout_s = max(120.0, step_timeout_s)
        limits = {
            "num_workers": num_workers,
            "step_timeout_s": step_timeout_s,
            "max_episodes_per_worker": max_episodes_per_worker,
            "reset_timeout_s": reset_timeout_s,
            "start_timeout_s": start_timeout_s,
        }
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"{name}: {value} is not positive")
        self.spec = spec
        self.step_timeout_s = step_timeout_s
        self.reset_timeout_s = reset_timeout_s
        self.max_episodes_per_worker = max_episodes_per_worker
        self.start_timeout_s = start_timeout_s
        self.num_replaced = 0
        """Workers replaced so far, for whatever reason."""
        self._workers: list[Worker] = [self._start() for _ in range(num_workers)]
        self._retiring: set[Worker] = set()
        self._num_episodes: dict[Worker, int] = {}
        self._tainted: set[Worker] = set()
        self._worker_of: dict[int, Worker] = {}
        self._closed = False

    def reset_many(self, episodes: Iterable[tuple[int, int, str | None]]) -> dict[int, Result]:
        """Begin episodes.

        Args:
            episodes: (slot, seed, task id or ``None`` for the environment's own draw).
        """
        begun = {slot: (seed, task) for slot, seed, task in episodes}
        for slot in begun:
            self._release(slot)
        for slot in begun:
            worker = self._place(slot)
            self._worker_of[slot] = worker
            self._num_episodes[worker] = self._num_episodes.get(worker, 0) + 1
        requests = {slot: ("reset", slot, argument) for slot, argument in begun.items()}
        return self._exchange(requests, self.reset_timeout_s)

    def step_many(self, actions: Mapping[int, str]) -> dict[int, Result]:
        """Act in several slots.

        Args:
            actions: Action by slot. A slot whose episode is lost or was never begun is answered with a ``Failure``.
        """
        return self._exchange(
            {slot: ("step", slot, action) for slot, action in actions.items()}, self.step_timeout_s
        )

    def walkthrough_many(self, slots: Iterable[int]) -> dict[int, tuple[str, ...] | Failure]:
        """The expert's actions by slot, from a fresh reset on."""
        return self._exchange({slot: ("walkthrough", slot, None) for slot in slots}, self.step_timeout_s)

    def close(self) -> None:
        """End all processes. May be called twice."""
        if not self._closed:
            self._closed = True
            for worker in [*self._workers, *self._retiring]:
                worker.close()
            self._worker_of.clear()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Worker:
        return Worker(
            "rwml_lightning.envs.pool:EnvironmentServer", self.spec, start_timeout_s=self.start_timeout_s
        )

    def _place(self, slot: int) -> Worker:
        """The worker for a new episode in a slot, replaced first where it is worn or gone."""
        seat = slot % len(self._workers)
        worker = self._workers[seat]
        worn = worker in self._tainted or self._num_episodes.get(worker, 0) >= self.max_episodes_per_worker
        if worker.alive and not (worn and len(self._retiring) < len(self._workers)):
            return worker
        self._workers[seat] = self._start()
        self.num_replaced += 1
        self._retiring.add(worker)
        self._end_idle()
        return self._workers[seat]

    def _release(self, slot: int) -> None:
        """Forget the episode of a slot."""
        self._worker_of.pop(slot, None)
        self._end_idle()

    def _end_idle(self) -> None:
        """End retiring workers that hold no running episode any more."""
        for worker in self._retiring - set(self._worker_of.values()):
            worker.close()
            self._retiring.discard(worker)
            self._tainted.discard(worker)
            self._num_episodes.pop(worker, None)

    def _exchange(self, requests: Mapping[int, tuple[str, int, Any]], timeout_s: float) -> dict[int, Any]:
        assert not self._closed, "the pool is closed"
        results: dict[int, Any] = {}
        batches: dict[Worker, dict[Any, Any]] = {}
        for slot, request in requests.items():
            worker = self._worker_of.get(slot)
            if worker is None or not worker.alive:
                results[slot] = Failure("lost", f"slot {slot} has no running episode: reset it first")
            else:
                batches.setdefault(worker, {})[slot] = request
        for worker, batch in batches.items():
            worker.submit(batch, timeout_s)
        for key, answer in collect(list(batches)):
            slot = int(str(key))
            if isinstance(answer, WorkerError):
                self._tainted.add(self._worker_of.pop(slot))
                answer = Failure(answer.reason, f"slot {slot}: {answer.message}")
            results[slot] = answer
        self._drop_dead()
        return {slot: results[slot] for slot in requests}

    def _drop_dead(self) -> None:
        """Forget episodes of workers that are gone, so that their slots are failures until they are reset."""
        self._worker_of = {slot: worker for slot, worker in self._worker_of.items() if worker.alive}
        self._end_idle()


class EnvironmentServer:
    """Worker's side: the environments of its slots, and the check of what they answer.

    Args:
        spec: What to make.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._spec = spec
        self._environments: dict[int, gymnasium.Env[Any, Any]] = {}
        self._episodes: dict[int, tuple[str | None, int]] = {}
        self._num_steps: dict[int, int] = {}

    def __call__(self, request: tuple[str, int, Any]) -> Any:
        """Answer one request; an environment that raises is dropped, so that the next episode has a fresh one."""
        operation, slot, argument = request
        handlers: dict[str, Callable[[int, Any], Any]] = {
            "reset": self._reset,
            "step": self._step,
            "walkthrough": self._walkthrough,
        }
        try:
            return handlers[operation](slot, argument)
        except BaseException:
            self._environments.pop(slot, None)
            raise

    def _reset(self, slot: int, argument: tuple[int, str | None]) -> Observation:
        if slot not in self._environments:
            self._environments[slot] = self._spec.make()
        seed, task = argument
        self._episodes[slot], self._num_steps[slot] = (task, seed), 0
        answer = self._environments[slot].reset(seed=seed, options=None if task is None else {"task": task})
        return self._checked(slot, "reset", read_reset, answer)

    def _step(self, slot: int, action: str) -> Observation:
        self._num_steps[slot] += 1
        answer = self._environments[slot].step(action)
        return self._checked(slot, f"step {self._num_steps[slot]}", read_step, answer)

    def _walkthrough(self, slot: int, _: None) -> tuple[str, ...]:
        answer = self._environments[slot].get_wrapper_attr("walkthrough")()
        return self._checked(slot, "walkthrough", read_walkthrough, answer)

    def _checked(self, slot: int, where: str, read: Callable[[Any], Answer], answer: Any) -> Answer:
        try:
            return read(answer)
        except ValueError as error:
            task, seed = self._episodes[slot]
            game = f"seed {seed}" if task is None else f"task {task!r}, seed {seed}"
            raise ValueError(f"environment {self._spec.id!r} ({game}), {where}: {error}") from None
