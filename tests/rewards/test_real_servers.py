"""Judge and embedder behind real vLLM servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rwml_lightning.models import resolve_model
from rwml_lightning.rewards import EmbeddingReward, JudgeReward, Server
from support.vllm_server import vllm_server
from support.worlds import make_transition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TEXTS = (
    "You open the drawer 1. In it, you see a mug 2.",
    "You open the drawer 1. It is empty.",
    "Nothing happens.",
)


def test_a_judge_that_is_a_real_chat_model(tmp_path: Path) -> None:
    model = resolve_model("package:smollm2-135m-instruct")
    transitions = [make_transition(next_state=text) for text in TEXTS]
    predictions = [TEXTS[0], None, TEXTS[0]]
    with vllm_server(model, "smol", tmp_path / "log", "--max-model-len", "1024") as url:
        # Left to itself so small a model keeps to no form; the server holds it to one.
        form = {"structured_outputs": {"choice": ["<verdict>yes</verdict>", "<verdict>no</verdict>"]}}
        held = JudgeReward(Server("smol", url, retries=0, extra_body=form), max_tokens=24)
        scores = held.score(transitions, predictions)
        assert all(score is not None and score.reward in (0.0, 1.0) for score in scores)
        assert [score.well_formed for score in scores if score] == [True, False, True]
        assert held.score(transitions, predictions) == scores  # greedily it says the same
        free = JudgeReward(Server("smol", url, retries=1), "real", max_tokens=24)
        for score in free.score(transitions, predictions):
            assert score is None or 0 <= score.reward <= 1
        with pytest.raises(Exception, match="other"):
            JudgeReward(Server("other", url, retries=0)).score(transitions, predictions)


def test_an_embedder_behind_a_server_pays_what_the_same_one_here_does(tmp_path: Path) -> None:
    model = resolve_model("package:all-minilm-l6-v2")
    transitions = [make_transition(next_state=text) for text in TEXTS]
    predictions = [TEXTS[1], TEXTS[1], TEXTS[0]]
    options = ("--runner", "pooling", "--max-model-len", "256")
    with vllm_server(model, "minilm", tmp_path / "log", *options) as url:
        there = EmbeddingReward("minilm", 0.2, "cosine", server=Server("minilm", url))
        here = EmbeddingReward("package:all-minilm-l6-v2", 0.2, "cosine", device="cpu")
        similarities = [
            [score.similarity for score in reward.score(transitions, predictions) if score]
            for reward in (there, here)
        ]
    assert len(similarities[0]) == 3
    np.testing.assert_allclose(similarities[0], similarities[1], atol=1e-4)
