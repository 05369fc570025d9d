"""Positions in training are numbers; everything else follows from them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rwml_testing import make_transition

from rwml_lightning.data.batches import StepLoader
from rwml_lightning.schema import Transition
from rwml_lightning.seeds import derive_seed

Batch = tuple[int, list[str]]


def make_loader(count: int, batch_size: int, seed: int | None = 0, num_passes: int = 1) -> StepLoader[Batch]:
    transitions = [make_transition(n) for n in range(count)]

    def make(step: int, chosen: list[Transition]) -> Batch:
        return step, [t.transition_id for t in chosen]

    return StepLoader(transitions, batch_size, make, seed, num_passes)  # type: ignore[arg-type]


@given(
    count=st.integers(1, 20), batch_size=st.integers(1, 8), seed=st.integers(0, 5), passes=st.integers(1, 3)
)
def test_each_pass_uses_every_transition_once(count: int, batch_size: int, seed: int, passes: int) -> None:
    loader = make_loader(count, batch_size, seed, passes)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert [step for step, _ in batches] == list(range(len(loader)))
    assert Counter(name for _, names in batches for name in names) == {f"t{n}": passes for n in range(count)}
    for start in range(0, len(batches), loader.steps_per_pass):
        one_pass = [name for _, names in batches[start : start + loader.steps_per_pass] for name in names]
        assert len(set(one_pass)) == count


def test_order_is_of_the_seed_and_the_pass() -> None:
    orders = [[name for _, names in make_loader(30, 5, seed, 2) for name in names] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:30] != orders[0][30:]
    assert [names for _, names in make_loader(4, 2, None)] == [["t0", "t1"], ["t2", "t3"]]


@pytest.mark.parametrize("position", [0, 3, 7])
def test_it_goes_on_from_any_position(position: int) -> None:
    batches = list(make_loader(10, 3, num_passes=2))
    loader = make_loader(10, 3, num_passes=2)
    loader.load_state_dict({"step": position})
    assert list(loader) == batches[position:]


def test_the_position_is_that_of_the_next_batch_and_none_is_made_ahead() -> None:
    made: list[int] = []
    loader = make_loader(6, 2)
    plain = loader.make
    loader.make = lambda step, chosen: made.append(step) or plain(step, chosen)  # type: ignore[func-returns-value]
    iterator = iter(loader)
    next(iterator)
    assert loader.step == 1
    assert made == [0]


def test_it_can_be_read_again() -> None:
    loader = make_loader(5, 2)
    assert list(loader) == list(loader) != []


def test_no_transitions_are_no_steps() -> None:
    assert list(make_loader(0, 4)) == []
    assert len(make_loader(0, 4)) == 0


@given(st.integers(), st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
@example(0, ["\ud800"])
def test_seeds_are_small_and_repeatable(run_seed: int, position: list[int | str]) -> None:
    seed = derive_seed(run_seed, *position)
    assert 0 <= seed < 2**31
    assert seed == derive_seed(run_seed, *position)


def test_seeds_differ_by_position_and_never_change() -> None:
    seeds = {
        derive_seed(run, "wm", step, member) for run in range(5) for step in range(20) for member in range(20)
    }
    assert len(seeds) == 2000
    assert (
        derive_seed(0, "wm", 1, 2) == 1630114836
    )  # by another process, machine or Python: runs can be repeated


def test_the_digest_is_of_the_items_and_their_order() -> None:
    def digest(*items: Transition) -> str:
        return StepLoader(items, 2, lambda step, chosen: None, 0).digest

    first, second = make_transition(0), make_transition(1)
    assert digest(first, second) == digest(make_transition(0), make_transition(1))
    changed = make_transition(1, next_state="It is dark.")
    assert len({digest(first, second), digest(second, first), digest(first), digest(first, changed)}) == 4
