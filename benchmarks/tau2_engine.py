"""This project's use of tau2-bench's engine against the stock distribution: same tasks and actions, and the same outputs.

    python benchmarks/tau2_engine.py                  # all parts, about ten minutes
    python benchmarks/tau2_engine.py replay steps     # some parts

``replay`` plays every task's reference solution, which must earn reward 1. ``evaluator`` plays complete and changed reference
solutions and compares the reward of each with that of the distribution's evaluator: there must be no mismatch. ``steps`` plays
telecom in solo mode here and in the distribution's Gymnasium class. ``resets`` times the rest of an episode: environment and
databases at its start, the reward at its end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from statistics import fmean, median
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rwml_lightning.envs.tau2 import Tau2Env
from rwml_lightning.envs.tau2.extra import import_engine
from rwml_lightning.envs.tau2.messages import Action, Call, read_action, write_action

PARTS = ("replay", "evaluator", "steps", "resets")
DOMAINS = ("airline", "retail", "telecom")
MANY = 1000
"""A limit of steps that no episode reaches."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--episodes", type=int, default=120, help="episodes per domain of `evaluator`")
    parser.add_argument(
        "--stock_steps", type=int, default=10, help="steps of `steps` in the distribution's class"
    )
    arguments = parser.parse_args()
    console = Console(width=120)
    measures: dict[str, Callable[[], Table]] = {
        "replay": replay,
        "evaluator": lambda: compare_rewards(arguments.episodes),
        "steps": lambda: compare_steps(arguments.stock_steps),
        "resets": compare_resets,
    }
    for part in arguments.parts:
        console.print(measures[part]())


def play(env: Tau2Env, task: str, actions: Sequence[str] | None = None) -> tuple[float, dict[str, Any]]:
    """Play one episode, by default the reference solution; return its reward and last ``info``."""
    env.reset(seed=0, options={"task": task})
    reward, info = 0.0, {}
    for action in env.walkthrough() if actions is None else actions:
        _, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    return reward, info


def all_tasks(env: Tau2Env) -> list[str]:
    return [task for tasks in env.tasks.values() for task in tasks]


def replay() -> Table:
    """Compute the rewards of every reference solution and of an agent that does nothing."""
    table = table_of(
        "reference solutions", "tasks", "with reward 1", "doing nothing earns", "steps/s with resets"
    )
    for domain, solo in (*((name, False) for name in DOMAINS), ("telecom", True)):
        env = Tau2Env(domain, solo=solo, max_steps=MANY)
        names = all_tasks(env)
        play(env, names[0])
        start, steps, rewards, nothing = time.perf_counter(), 0, [], []
        for task in names:
            reward, info = play(env, task)
            rewards.append(reward)
            nothing.append(info["measures"]["do_nothing"])
            steps += len(env.walkthrough())
        rate = steps / (time.perf_counter() - start)
        table.add_row(
            domain + (" alone" if solo else ""), str(len(names)), str(sum(one == 1 for one in rewards)),
            f"{fmean(nothing):.3f}", f"{rate:.0f}",
        )  # fmt: skip
    return table


def compare_rewards(episodes: int) -> Table:
    """Compare rewards with the distribution's evaluator on solutions with calls removed, added and changed."""
    module = import_engine("tau2.evaluator.evaluator")
    simulation = import_engine("tau2.data_model.simulation")
    table = table_of("evaluator", "episodes", "reward 1", "mismatches", "here (ms)", "stock (ms)", "ratio")
    for domain, solo in (*((name, False) for name in DOMAINS), ("telecom", True)):
        env = Tau2Env(domain, solo=solo, max_steps=MANY, max_errors=MANY)
        ours: list[float] = []
        seconds: tuple[list[float], list[float]] = ([], [])
        mismatches = 0
        for task, actions in track(list(changed_solutions(env, episodes)), f"evaluator {domain}"):
            reward, _ = play(env, task, actions)
            conversation = env.unwrapped._conversation
            assert conversation is not None
            assert conversation.ended is not None
            start = time.perf_counter()
            again = conversation.reward()
            seconds[0].append(time.perf_counter() - start)
            run = simulation.SimulationRun(
                id="", task_id=task, start_time="", end_time="", duration=0.0,
                termination_reason=conversation.ended, messages=conversation.orchestrator.trajectory,
            )  # fmt: skip
            start = time.perf_counter()
            stock = module.evaluate_simulation(
                run, conversation.task, module.EvaluationType.ALL, solo, domain
            ).reward
            seconds[1].append(time.perf_counter() - start)
            ours.append(reward)
            mismatches += not reward == again == stock
        here, theirs = (1000 * fmean(one) for one in seconds)
        table.add_row(
            domain + (" alone" if solo else ""), str(len(ours)), f"{sum(ours):.0f}", str(mismatches),
            f"{here:.1f}", f"{theirs:.1f}", f"{theirs / here:.1f}",
        )  # fmt: skip
    return table


def changed_solutions(env: Tau2Env, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield tasks and actions: reference solutions unchanged, without some calls, with other tasks' calls or with other arguments."""
    names = all_tasks(env)
    solutions: dict[str, list[Action]] = {}
    for name in names:
        env.reset(seed=0, options={"task": name})
        solutions[name] = [read_action(action) for action in env.walkthrough()]
    for number in range(count):
        rng = Random(number)
        name = names[number % len(names)]
        *actions, last = solutions[name]
        way = rng.randrange(4)
        if way == 1:
            actions = [action for action in actions if rng.random() < 0.7]
        elif way == 2:
            others = [a for _ in range(3) for a in solutions[rng.choice(names)][:-1]]
            for action in rng.sample(others, min(3, len(others))):
                actions.insert(rng.randint(0, len(actions)), action)
        elif way == 3:
            actions = [change_arguments(action, rng) if rng.random() < 0.5 else action for action in actions]
        yield name, [write_action(action, "json") for action in (*actions, last)]


def change_arguments(action: Action, rng: Random) -> Action:
    """Remove or replace one argument of each call of an action."""
    calls = []
    for call in action.calls:
        arguments = dict(call.arguments)
        if arguments:
            name = rng.choice(sorted(arguments))
            if rng.random() < 0.3:
                del arguments[name]
            else:
                arguments[name] = "no such thing" if isinstance(arguments[name], str) else arguments[name]
        calls.append(Call(call.name, arguments))
    return Action(action.text, tuple(calls))


def compare_steps(stock_steps: int) -> Table:
    """Measure steps per second of telecom in solo mode, without resets, and compare the answers of both engines."""
    gym_agent = import_engine("tau2.gym.gym_agent")
    env = Tau2Env("telecom", solo=True, max_steps=MANY)
    names = all_tasks(env)
    ours: list[float] = []
    theirs: list[float] = []
    for name in names:
        env.reset(seed=0, options={"task": name})
        plan = env.walkthrough()
        stock = None
        if len(theirs) < stock_steps:
            stock = gym_agent.AgentGymEnv("telecom", name.partition("/")[2], max_steps=MANY, solo_mode=True)
            stock.reset()
        for action in plan[:-1]:
            start = time.perf_counter()
            messages, *_ = env.step(action)
            ours.append(time.perf_counter() - start)
            if stock is not None and len(theirs) < stock_steps:
                (call,) = read_action(action).calls
                start = time.perf_counter()
                observation, *_ = stock.step(write_action(Action(calls=(call,)), "python"))
                theirs.append(time.perf_counter() - start)
                if messages[-1]["content"] not in observation:
                    raise SystemExit(
                        f"{name}: the engines differ: {messages[-1]['content']!r}, {observation!r}"
                    )
    table = table_of("telecom alone", "steps", "steps/s", "median (ms)")
    for label, seconds in (("stock", theirs), ("here", ours)):
        table.add_row(label, str(len(seconds)), f"{1 / fmean(seconds):.2f}", f"{1000 * median(seconds):.2f}")
    table.add_row("ratio", "", f"{fmean(theirs) / fmean(ours):.0f}", f"{median(theirs) / median(ours):.0f}")
    return table


def compare_resets(rounds: int = 20) -> Table:
    """Measure an episode's start and last step in ms, here and plain: with new databases that are read and replayed."""
    registry = import_engine("tau2.registry").registry
    evaluator = import_engine("tau2.evaluator.evaluator_env").EnvironmentEvaluator
    engine = import_engine("rwml_lightning.envs.tau2.domains")
    table = table_of(
        "an episode's start and end (ms)", "start, plain", "here", "end, plain", "here", "ratio of both"
    )
    for domain, solo in (*((name, False) for name in DOMAINS), ("telecom", True)):
        env = Tau2Env(domain, solo=solo, max_steps=MANY)
        names = [
            n for n in all_tasks(env) if engine.tasks_of(domain)[n.partition("/")[2]].evaluation_criteria
        ]
        plain: tuple[list[float], list[float]] = ([], [])
        here: tuple[list[float], list[float]] = ([], [])
        for name in names[: rounds + 1]:
            env.reset(seed=0, options={"task": name})  # fills caches
            task = engine.tasks_of(domain)[name.partition("/")[2]]
            start = time.perf_counter()
            stock = registry.get_env_constructor(domain)(solo_mode=solo)
            initial = task.initial_state
            stock.set_state(
                initialization_data=initial and initial.initialization_data,
                initialization_actions=initial and initial.initialization_actions,
                message_history=(initial and initial.message_history) or [],
            )
            plain[0].append(time.perf_counter() - start)
            start = time.perf_counter()
            env.reset(seed=0, options={"task": name})
            if solo:  # the engine sets up the task at the first action
                env.step("get_details_by_id(id='nobody')")
            here[0].append(time.perf_counter() - start)
            env.reset(seed=0, options={"task": name})
            *first, last = env.walkthrough()
            for action in first:
                env.step(action)
            start = time.perf_counter()
            env.step(last)
            here[1].append(time.perf_counter() - start)
            conversation = env.unwrapped._conversation
            assert conversation is not None
            start = time.perf_counter()
            evaluator.calculate_reward(
                registry.get_env_constructor(domain), task, conversation.orchestrator.trajectory, solo
            )
            plain[1].append(time.perf_counter() - start)
        # leave out the first measurement, which fills caches
        a, b, c, d = (1000 * fmean(one[1:]) for one in (plain[0], here[0], plain[1], here[1]))
        table.add_row(
            domain + (" alone" if solo else ""),
            f"{a:.1f}",
            f"{b:.1f}",
            f"{c:.1f}",
            f"{d:.1f}",
            f"{(a + c) / (b + d):.1f}",
        )
    return table


def table_of(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


if __name__ == "__main__":
    main()
