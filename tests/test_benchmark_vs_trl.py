"""The step that the benchmark times is TRL's: same losses and gradient norms on given completions and rewards."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
LOSS_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 3e-5


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_trl(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from wm_grpo import here, peer
    from wm_grpo.case import Case, Given, Turns

    # The rate is high so that the policy leaves its reference: the KL penalty is 0 in the first step.
    case = Case(str(tiny_model), 24, 12, 6, num_steps=4, kl_coefficient=0.1, learning_rate=1e-3)
    given = Given.of(case)
    assert len(set(map(len, given.completions))) > 1
    ours, theirs = Turns(case.num_steps), Turns(case.num_steps)
    here.run(case, ours, given=given)
    peer.run(case, theirs, given=given)

    assert [step.reward for step in ours.steps] == pytest.approx([step.reward for step in theirs.steps])
    assert [step.loss for step in ours.steps] == pytest.approx(
        [step.loss for step in theirs.steps], abs=LOSS_TOLERANCE
    )
    assert [step.gradient_norm for step in ours.steps] == pytest.approx(
        [step.gradient_norm for step in theirs.steps], rel=GRADIENT_TOLERANCE
    )
    assert ours.steps[-1].loss > 1000 * LOSS_TOLERANCE
