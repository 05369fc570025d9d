"""Both stages on tau2-bench from the shipped configs, shortened, with the real engine and model; and a user's own environment."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

pytest.importorskip("tau2", reason="the real engine")

from rwml_lightning.cli import main
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.trace import TraceReader

ROOT = Path(__file__).parents[1]
FEW = (  # the plain generator starts at once; vLLM on such configs is tested elsewhere
    "--data.generator rwml_lightning.generation.HFGenerator --warm_up.num_transitions 2 --warm_up.batch_size 2 "
    "--trainer.max_steps 1"
)
PREDICT = f"{FEW} --data.predictions.validation.num_transitions 2 --data.predictions.prompts_per_step 2 --data.predictions.group_size 2 --data.predictions.sampling.max_tokens 24"
PLAY = (
    f"{FEW} --warm_up.num_passes 1 --data.episodes.games_per_step 1 --data.episodes.group_size 2 --data.episodes.max_turns 2 "
    "--data.episodes.sampling.max_tokens 16 --data.episodes.validation.num_games 2 --data.episodes.validation.max_turns 2"
)


def rwml(command: str) -> None:
    main(shlex.split(command))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_quickstarts(capsys: pytest.CaptureFixture[str]) -> None:
    rwml(
        f"fit --config {ROOT}/configs/quickstart.yaml --config {ROOT}/configs/tau2/quickstart.yaml {PREDICT} --data.predictions.collection.max_turns 3"
    )
    out = capsys.readouterr().out
    for words in ("Held-out predictions", "floor: most_common", "floor: copy_observation", "after warm-up"):
        assert words in out
    found = read_transitions(Path("data/tau2-quickstart/transitions.parquet"))
    assert {(one.kind, one.environment) for one in found} == {("tool", "rwml/Tau2-v0")}
    assert {one.split for one in found} == {"train", "validation"}
    assert all(one.task.startswith("telecom. ") for one in found)
    rwml(
        f"fit --config {ROOT}/configs/quickstart.yaml --config {ROOT}/configs/tau2/policy_quickstart.yaml {PLAY}"
    )
    out = capsys.readouterr().out
    for words in ("Evaluation games", "nothing", "As the environment measures them", "hops", "calls"):
        assert words in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_policy_talks_to_a_user_in_its_chat_template(capsys: pytest.CaptureFixture[str]) -> None:
    chat = '--data.episodes.prompt.layout chat --data.episodes.prompt.system "{instructions}" --data.episodes.validation.episodes_per_game 2'
    rwml(
        f"fit --config {ROOT}/configs/quickstart.yaml --config {ROOT}/configs/tau2/policy_quickstart.yaml {PLAY} {chat} --model.init_args.init_from null --warm_up null --run.name chat"
    )
    out = capsys.readouterr().out
    for words in ("Evaluation games", "pass@2", "pass^2", "user", "calls"):
        assert words in out
    with TraceReader(Path("runs/chat/trace.db")) as reader:
        (last, *_) = reader.episodes_by_id(reader.episode_ids("policy_grpo"))
    assert last.game.startswith("mock/")
    assert last.success is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_world_model_stage_in_somebody_elses_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    rwml(
        f"fit --config {ROOT}/examples/taxi.yaml {PREDICT} --data.predictions.collection.episodes_per_game 8"
    )
    assert "Held-out predictions" in capsys.readouterr().out
    found = read_transitions(Path("data/taxi/transitions.parquet"))
    assert {one.kind for one in found} <= {"move", "passenger"}
    assert all(one.next_state.startswith("The taxi is in row ") for one in found)
    assert Path("runs/taxi/export/model.safetensors").exists()
