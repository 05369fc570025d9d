"""The audit: shares and the chosen threshold by hand, then the command with a stand-in embedder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwml_lightning.audit import Audit, Choice, Row, audit_reward, choose_tau
from rwml_lightning.audit.candidates import make_candidates
from rwml_lightning.audit.measure import TAUS, Example, shares
from rwml_lightning.audit.report import print_audit, verdict, write_audit
from rwml_lightning.cli import main
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.rewards import ContentReward
from rwml_lightning.schema import Score
from rwml_lightning.terminal import Terminal
from support.rewards import LetterReward
from support.worlds import make_transition, make_world


class ExactReward:
    """Pays for equality alone, and embeds nothing."""

    success_similarity = 0.5

    def score(self, transitions: Any, predictions: Any) -> list[Score]:
        pairs = zip(transitions, predictions, strict=True)
        return [Score(float(t.next_state == p), None, p is not None) for t, p in pairs]


def row(group: Any, kind: str, *distances: float, reward: float = 0.0) -> Row:
    accepted = tuple(sum(d < tau for d in distances) / len(distances) for tau in TAUS) if distances else ()
    example = Example("real", "text", reward, distances[0] if distances else None)
    return Row(group, kind, max(len(distances), 1), reward, distances, accepted, example)


def test_the_threshold_between_right_and_wrong_is_chosen() -> None:
    rows = [row("rewording", "a", 0.01, 0.05), row("near miss", "b", 0.2, 0.3), row("floor", "c", 0.001)]
    choice = choose_tau(rows)
    # 0.06, 0.08, 0.1, 0.12, 0.15 and 0.2 (strict) all separate them: the lower of the two in the middle
    assert choice == Choice(0.1, hits=1.0, false_alarms=0.0)
    assert choice.balanced_accuracy == 1


def test_each_kind_counts_once() -> None:
    rows = [row("rewording", "many", *[0.01] * 9), row("rewording", "few", 0.5), row("near miss", "b", 0.1)]
    assert shares(rows, "rewording")[TAUS.index(0.2)] == 0.5
    choice = choose_tau(rows)
    assert choice is not None
    assert (choice.hits, choice.false_alarms) == (0.5, 0)
    assert choice.balanced_accuracy == 0.75


def test_nothing_to_tell_apart_chooses_nothing() -> None:
    assert choose_tau([row("rewording", "a", 0.1)]) is None
    assert choose_tau([row("rewording", "a"), row("near miss", "b")]) is None


@pytest.mark.parametrize(
    ("near", "paid", "words"),
    [
        (0.01, 0.9, ["Warning: no tau_d separates the two.", "Warning: near misses earn too much reward"]),
        (0.01, 0.1, ["No tau_d separates the two; this reward uses more than the distance."]),
        (0.50, 0.0, []),
    ],
)
def test_a_reward_that_takes_near_misses_for_right_is_warned_of(
    near: float, paid: float, words: list[str]
) -> None:
    rows = (row("rewording", "a", 0.01, reward=1.0), row("near miss", "b", near, reward=paid))
    lines = verdict(Audit(1, 0.2, rows, choose_tau(rows)))
    assert (
        lines[0]
        == f"As configured, the mean reward is 1.00 for rewordings and {paid:.2f} for near misses (mean of kinds)."
    )
    assert [line[: len(word)] for line, word in zip(lines[2:], words, strict=True)] == words


def test_wrong_candidates_are_wrong() -> None:
    world = [make_transition(n, kind="k", next_state=f"You see a mug {n % 2}.") for n in range(20)]
    found = make_candidates(world, world, {"copy": lambda t: t.next_state + " ", "other": lambda t: "no"}, 0)
    assert {c.group for c in found} == {"rewording", "near miss", "other state", "floor"}
    wrong = [c for c in found if c.group != "rewording"]
    assert all(c.text.split() != c.transition.next_state.split() for c in wrong)
    assert {c.kind for c in wrong if c.group == "floor"} == {"other"}
    assert found == make_candidates(
        world, world, {"copy": lambda t: t.next_state + " ", "other": lambda t: "no"}, 0
    )


def test_rows_are_means_over_their_texts() -> None:
    world = make_world()
    audit = audit_reward(LetterReward(tau_d=0.05), world, world, {"silence": lambda _: "zzz"}, seed=0)
    assert audit.num_transitions == 40
    assert audit.tau_d == pytest.approx(0.05)
    silence = audit.group("floor")[0]
    assert (silence.count, silence.reward, silence.accepted[-1]) == (40, 0, 0)
    assert silence.distances == pytest.approx([1.0] * 40)
    for found in audit.rows:
        assert found.reward == pytest.approx(found.accepted[TAUS.index(0.05)])
        assert list(found.accepted) == sorted(found.accepted)
    objects = next(r for r in audit.rows if r.kind == "another object")
    assert objects.example.distance == objects.distances[0]


def test_a_reward_without_embedding_is_judged_by_what_it_pays(capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world()
    audit = audit_reward(ExactReward(), world, world, {}, seed=0)
    assert audit.choice is None
    assert {found.reward for found in audit.rows} == {0.0}
    assert {found.distances for found in audit.rows} == {()}
    print_audit(audit, Terminal(width=100))
    printed = capsys.readouterr().out
    assert "As configured, the mean reward is 0.00" in printed
    assert "distance" not in printed.split("highest reward")[0]
    seeing = audit_reward(ContentReward(LetterReward()), world, world, {}, seed=0)
    assert (seeing.mean_reward("near miss") or 0) < (seeing.mean_reward("rewording") or 0)


def test_hostile_text_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    world = [make_transition(next_state="You see a mug 1. [bold]\x1b[2J[/nonsense]")]
    print_audit(audit_reward(LetterReward(tau_d=2.0), world, world, {}, seed=0), Terminal(width=100))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b" in printed


def test_settings_of_any_text_are_written(tmp_path: Path) -> None:
    world = make_world()
    audit = audit_reward(LetterReward(tau_d=0.05), world, world, {}, seed=0)
    write_audit(audit, tmp_path / "audit.json", {"prompt": "é \ud800"})
    assert json.loads((tmp_path / "audit.json").read_text())["prompt"] == "é \ufffd"


def make_config(folder: Path) -> list[str]:
    config = {
        "run": {"name": "r", "root": str(folder / "runs")},
        "trainer": {"accelerator": "gpu", "devices": 64},
        "model": {
            "class_path": "rwml_lightning.modules.WorldModelGRPO",
            "init_args": {"model": "./not/there"},
        },
        "data": {
            "generator": {"class_path": "rwml_lightning.generation.HFGenerator"},
            "predictions": {
                "transitions": str(folder / "t.parquet"),
                "reward": {"class_path": "support.rewards.LetterReward"},
            },
        },
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["audit", "--config", str(file)]


@pytest.mark.heavy
def test_the_command_needs_no_model_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transitions(tmp_path / "t.parquet", make_world())
    main(make_config(tmp_path))
    printed = capsys.readouterr().out
    assert "Reward on texts made from 8 real next states" in printed
    folder = tmp_path / "runs" / "r-audit"
    written = json.loads((folder / "audit.json").read_text())
    assert written["num_transitions"] == 8
    assert written["choice"]["tau_d"] in TAUS
    assert {r["group"] for r in written["rows"]} == {"rewording", "near miss", "other state", "floor"}
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")

    before = (folder / "audit.json").read_bytes()
    main(make_config(tmp_path))  # the same again finds its folder
    assert (folder / "audit.json").read_bytes() == before
    main([*make_config(tmp_path), "--split", "all", "--num_transitions", "3"])  # another one leaves it alone
    assert (folder / "audit.json").read_bytes() == before
    assert json.loads((tmp_path / "runs" / "r-audit-2" / "audit.json").read_text())["num_transitions"] == 3
    main([*make_config(tmp_path), "--output", str(tmp_path / "here")])
    assert (tmp_path / "here" / "audit.json").exists()


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.heavy
def test_missing_data_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "which does not exist; collect it: python -m rwml_lightning collect" in error_of(
        make_config(tmp_path), capsys
    )
    write_transitions(tmp_path / "t.parquet", [t for t in make_world() if t.split == "train"])
    assert "holds no validation transitions; --split takes train, validation or all" in error_of(
        make_config(tmp_path), capsys
    )
    assert not (tmp_path / "runs").exists()
