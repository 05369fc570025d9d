"""What engines and later processes get of this run's launcher."""

from __future__ import annotations

import pytest

from rwml_lightning.parallel import RankError, first_failure, own_card, without_launcher
from rwml_lightning.parallel.ranks import Failure


def test_another_program_gets_nothing_of_the_launcher() -> None:
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    elastic = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "x", "ROLE_RANK": "1"}
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3", "RANKS": "not ours"}
    assert without_launcher({**launched, **kept, **elastic}) == kept


@pytest.mark.parametrize(
    ("environment", "num_cards", "card"),
    [
        ({}, 8, None),  # a single process keeps all that it sees
        ({"LOCAL_RANK": "2"}, 8, "2"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"}, 2, "6"),
        ({"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "4,6"}, 2, None),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": ""}, 0, None),
        ({"LOCAL_RANK": "0"}, 0, None),  # a CPU
    ],
)
def test_an_engine_sees_the_card_of_its_rank(
    environment: dict[str, str], num_cards: int, card: str | None
) -> None:
    assert own_card(environment, num_cards) == card


def test_a_failure_is_one_line_of_type_and_message() -> None:
    assert first_failure(ValueError("no\nmore")) == "ValueError: no"
    assert first_failure(RankError(Failure(3, "ValueError: no"))) == "rank 3 failed: ValueError: no"
