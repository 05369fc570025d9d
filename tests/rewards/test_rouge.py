"""ROUGE in every script; in English to the last bit what rouge-score gives."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from rwml_lightning.evaluation.measures import measure
from rwml_lightning.rewards import RougeReward
from rwml_lightning.rewards.rouge import RougeVariant, rouge, words
from rwml_lightning.schema import Score
from support.worlds import make_transition

VARIANTS: tuple[RougeVariant, ...] = get_args(RougeVariant)
DIFFERENT = {
    "Chinese": ("你打开了柜子。", "你关上了柜子。"),
    "Japanese": ("引き出しを開けた。", "引き出しを閉めた。"),
    "Korean": ("서랍을 열었다", "서랍을 닫았다"),
    "Russian": ("Ящик открыт.", "Ящик закрыт."),
    "Greek": ("Το συρτάρι είναι ανοιχτό", "Το συρτάρι είναι κλειστό"),
    "accents": ("Été à Orléans", "Hiver à Orléans"),
    "Arabic": ("الدرج مفتوح", "الدرج مغلق"),
    "Devanagari": ("दराज खुली है", "दराज बंद है"),
    "marks": ("कि", "की"),  # two vowel signs on one consonant
    "Thai": ("ลิ้นชักเปิดอยู่", "ลิ้นชักปิดอยู่"),
    "emoji": ("🎉 🎉", "🎊 🎉"),
    "emoji beside words": ("door 🎉", "door 🎊"),
    "punctuation": ("...", "!"),
    "one word": ("opened", "closed"),
}


@given(st.text(st.characters(max_codepoint=127)), st.text(st.characters(max_codepoint=127)))
@pytest.mark.parametrize("variant", VARIANTS)
def test_of_ascii_texts_it_is_that_of_rouge_score(variant: RougeVariant, prediction: str, real: str) -> None:
    expected = RougeScorer([variant]).score(real, prediction)[variant].fmeasure
    if words(prediction) != words(real):
        assert rouge(prediction, real, variant) == expected
    elif expected:
        assert expected == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("script", DIFFERENT)
def test_equal_texts_earn_all_and_others_less_in_every_script(script: str, variant: RougeVariant) -> None:
    real, other = DIFFERENT[script]
    reward = RougeReward(variant)
    scores = reward.score([make_transition(next_state=real)] * 2, [real, other])
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0].reward == scores[0].similarity == 1
    assert scores[1].reward < 1


@given(st.text(min_size=1), st.sampled_from(VARIANTS))
def test_any_text_earns_all_against_itself(text: str, variant: RougeVariant) -> None:
    assert rouge(text, text, variant) == 1


def test_a_text_of_another_script_has_nothing_in_common() -> None:
    assert rouge("Ящик открыт", "The drawer is open") == 0
    assert rouge("...", "opened") == rouge("opened", "...") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Turn_on the Lamp-2!", ["turn", "on", "the", "lamp", "2"]),
        ("Straße ÉTÉ e\u0301te\u0301", ["strasse", "été", "été"]),
        ("ｍｕｇ １", ["mug", "1"]),  # full width
        ("杯子12在桌上", ["杯", "子", "12", "在", "桌", "上"]),
        ("กำแพง", ["กํ", "า", "แ", "พ", "ง"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("$5 + 5€ 🎉", ["5", "5", "€", "🎉"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_third_of_the_characters_in_common() -> None:
    # 开门了 and 关门吗 share 门: precision and recall 1/3
    assert rouge("开门了", "关门吗") == pytest.approx(1 / 3)


def test_held_out_overlap_reads_every_script_too() -> None:
    transition = make_transition(next_state="Ящик открыт.")
    found = measure(transition, ["ящик  открыт", "ящик закрыт"], [Score(1.0, 1.0, True)] * 2, 0.5)
    assert found.values["rouge_l"] == pytest.approx((1 + 0.5) / 2)
