"""A run with a chat template: checked before anything is generated, written down, and the same for every command."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rwml_callbacks import EasySampleFilter
from transformers import PreTrainedTokenizerBase

from rwml_lightning.cli import main
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.envs import Observation
from rwml_lightning.episodes.actors import ModelActor
from rwml_lightning.episodes.loop import Act
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import WorldModelSFT
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.prompts.next_state import WorldModelPrompt
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Completion, Sampling, Score
from support.rewards import LetterReward
from support.runs import make_config
from support.worlds import make_transition, make_world

OPENS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if thinks is not defined or thinks %}<think>\n{% endif %}{% endif %}"
)


def refuse(
    self: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
) -> list[list[Completion]]:
    """In place of the generator's method."""
    raise AssertionError("a prompt reached the generator")


def with_template(tiny_model: Path, folder: Path, template: str) -> Path:
    """The tiny model with a chat template."""
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{% for p in m.parts %}{{ p }}{% endfor %}{% endfor %}", "does not show the message"),
        ("{{ raise_exception('no chat') }}", "refuses it: no chat"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "has no generation prompt"),
    ],
)  # fmt: skip
def test_a_template_that_loses_the_prompt_ends_the_run_in_a_line_before_it_generates(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    template: str, reason: str,
) -> None:  # fmt: skip
    model = with_template(tiny_model, tmp_path / "model", template)
    write_transitions(tmp_path / "t.parquet", make_world())
    monkeypatch.setattr(HFGenerator, "generate", refuse)
    config = make_config(tmp_path, model)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(config)])
    assert stopped.value.code == 2
    (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("error: "))
    assert reason in line
    assert f"the chat template of {model}" in line


@pytest.mark.heavy
def test_arguments_of_the_template_are_a_key_of_the_config(tiny_model: Path, tmp_path: Path) -> None:
    model = with_template(tiny_model, tmp_path / "model", OPENS)
    write_transitions(tmp_path / "t.parquet", make_world())
    config = make_config(tmp_path, model, data={"chat_template_kwargs": {"thinks": False}})
    main(["fit", "--config", str(config)])
    written = yaml.safe_load((tmp_path / "runs" / "r" / "config.yaml").read_text())
    assert written["data"]["chat_template_kwargs"] == {"thinks": False}


def test_results_that_depend_on_them_say_so(tiny_model: Path, tmp_path: Path) -> None:
    model = with_template(tiny_model, tmp_path / "model", OPENS)
    module = WorldModelSFT(model=str(model))
    settings, labels, prompts = [], [], []
    for thinks in (True, False):
        kwargs = {"thinks": thinks}
        predictions = Predictions("t.parquet", LetterReward())
        data = RolloutDataModule(HFGenerator(), predictions=predictions, chat_template_kwargs=kwargs)
        chat = data.ask(module).chat
        settings.append(EasySampleFilter()._prediction_settings(module, data, [], [], "32-true"))
        labels.append(fingerprint(chat))
        prompts.append(chat.encode_user("", "ask"))
    assert settings[0] != settings[1]
    assert labels[0] != labels[1]
    assert chat.tokenizer.decode(prompts[0]) == chat.tokenizer.decode(prompts[1]) + "<think>\n"


class Draft:
    """Writes a draft and is cut off, or ends its thinking and answers."""

    max_model_len = None
    policy_version = 0

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *texts: str) -> None:
        self.ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> list[list[Completion]]:
        return [
            [Completion(ids, (0.0,) * len(ids), "length", 0) for ids, _ in zip(self.ids, group, strict=False)]
            for group in seeds
        ]


class Equal:
    """1 for the real next state."""

    def score(self, transitions: Any, predictions: Any) -> list[Any]:
        return [
            Score(float(p == t.next_state), None, p is not None)
            for t, p in zip(transitions, predictions, strict=True)
        ]


def test_a_draft_earns_nothing_where_the_template_opens_thinking(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    opens = copy.copy(tiny_tokenizer)
    opens.chat_template = OPENS
    transition = make_transition()
    draft = f"Perhaps <next_state>{transition.next_state}</next_state>"
    answer = f"No.</think>\n<next_state>{transition.next_state}</next_state>"
    generator: Any = Draft(opens, draft, answer)
    reward: Any = Equal()
    for thinks, earned in ((True, [0.0, 1.0]), (False, [1.0, 1.0])):
        chat = ChatFormat(opens, {"thinks": thinks})
        rollouts = WorldModelRollouts(PolicyClient(generator, chat), reward, WorldModelPrompt(), 0)
        (group,) = rollouts.collect("train", 0, [transition], 2, Sampling(64)).groups
        assert [one.score.reward for one in group.predictions] == earned
        if thinks:
            assert [one.thinking for one in group.predictions] == [draft, "No."]


def test_nor_does_it_act(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    opens = copy.copy(tiny_tokenizer)
    opens.chat_template = OPENS
    state = EpisodeState.begin("g#0", Observation("here", info={"admissible_actions": ["wait"]}))
    generator: Any = Draft(opens, "Or <action>wait</action>")
    player = ModelActor(
        PolicyClient(generator, ChatFormat(opens)), ActionPrompt(), Sampling(64), lambda *_: 0
    )
    (act,) = player.act([state])
    assert isinstance(act, Act)
    assert (act.action, act.thinking) == ("", "Or <action>wait</action>")
