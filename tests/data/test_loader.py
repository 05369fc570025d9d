"""Positions in training are numbers; everything else follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rwml_lightning import parallel
from rwml_lightning.data.loader import Draw, StepLoader, merge
from rwml_lightning.schema import EpisodeBatch, Transition
from rwml_lightning.seeds import derive_seed
from support.worlds import make_transition

Batch = tuple[int, list[str]]


def make_loader(
    count: int,
    batch_size: int,
    seed: int | None = 0,
    num_passes: int = 1,
    in_parts: bool = False,
) -> StepLoader[Transition, Batch]:
    transitions = [make_transition(n) for n in range(count)]

    def make(step: int, chosen: Sequence[Transition]) -> Batch:
        return step, [t.transition_id for t in chosen]

    return StepLoader(Draw(transitions, batch_size, make, num_passes, in_parts), seed)


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
    plain = loader.draw.make
    loader.draw = replace(
        loader.draw,
        make=lambda step, chosen: made.append(step) or plain(step, chosen),  # type: ignore[func-returns-value]
    )
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
        return StepLoader(Draw(items, 2, lambda step, chosen: None), 0).digest

    first, second = make_transition(0), make_transition(1)
    assert digest(first, second) == digest(make_transition(0), make_transition(1))
    changed = make_transition(1, next_state="It is dark.")
    assert len({digest(first, second), digest(second, first), digest(first), digest(first, changed)}) == 4


@given(
    count=st.integers(1, 20), batch_size=st.integers(1, 8), passes=st.integers(1, 3), seed=st.integers(0, 5)
)
def test_parts_keep_neighbours_and_come_in_an_order_of_each_pass(
    count: int, batch_size: int, passes: int, seed: int
) -> None:
    parts = [[f"t{n}" for n in range(count)][i : i + batch_size] for i in range(0, count, batch_size)]
    expected = [
        parts[place]
        for number in range(passes)
        for place in sorted(range(len(parts)), key=lambda place: derive_seed(seed, "order", number, place))
    ]
    loader = make_loader(count, batch_size, seed, passes, in_parts=True)
    assert [names for _, names in loader] == expected
    assert len(loader) == passes * len(parts)
    assert [names for _, names in make_loader(count, batch_size, None, in_parts=True)] == parts


def test_the_state_is_what_the_items_of_all_steps_follow_from() -> None:
    loader = make_loader(5, 2, 4, 3)
    next(iter(loader))
    assert loader.state_dict() == {
        "step": 1, "seed": 4, "batch_size": 2, "num_items": 5, "items": loader.digest,
    }  # fmt: skip


def test_shares_of_ranks_become_the_batch_of_the_step() -> None:
    first = EpisodeBatch(3, 2, ("a", "b"), 0.5, ("lost",), {"generate": 4.0, "env": 1.0})  # type: ignore[arg-type]
    other = EpisodeBatch(3, 2, ("c",), 0.5, (), {"generate": 3.0, "reward": 2.0}, ("label",))  # type: ignore[arg-type]
    assert merge([first, other]) == EpisodeBatch(
        3,
        2,
        ("a", "b", "c"),
        0.5,
        ("lost",),
        {"generate": 4.0, "env": 1.0, "reward": 2.0},
        ("label",),  # type: ignore[arg-type]
    )
    assert merge([other]) is other
    with pytest.raises(ValueError, match=r"ranks disagree on policy_version of a EpisodeBatch: \[2, 1\]"):
        merge([first, replace(other, policy_version=1)])


@pytest.mark.parametrize("gathered", [True, False])
def test_a_rank_makes_its_share_and_the_whole_is_completed(
    monkeypatch: pytest.MonkeyPatch, gathered: bool
) -> None:
    monkeypatch.setattr(parallel, "roll_out_own", lambda items, make: make(items[:1]))
    monkeypatch.setattr(parallel, "roll_out", lambda items, make: [make(items[:1]), make(items[1:])])

    def make(step: int, items: Sequence[str]) -> EpisodeBatch:
        return EpisodeBatch(step, 0, tuple(items))  # type: ignore[arg-type]

    def complete(batch: EpisodeBatch) -> EpisodeBatch:
        return replace(batch, dropped=("completed",))

    (batch,) = StepLoader(Draw(["x", "y"], 2, make, complete=complete, gathered=gathered))
    expected = (
        EpisodeBatch(0, 0, ("x", "y"), dropped=("completed",)) if gathered else EpisodeBatch(0, 0, ("x",))
    )  # type: ignore[arg-type]
    assert batch == expected
