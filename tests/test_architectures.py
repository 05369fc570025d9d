"""Every causal architecture of transformers works equal, or is refused in a line: docs/models.md has which.

For each, a tiny random model: packed rows against every sequence alone (values and gradients), the exported folder and
merged adapters against the policy, greedy completions against transformers' generate.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.architectures import CASES, Row, class_name, documented, documented_engine, examine

FAST = {
    "falcon",
    "gemma3_text",
    "gpt2",
    "llama",
    "llama4_text",
    "mamba",
    "mixtral",
    "opt",
    "phi3, LongRoPE",
    "phimoe",
    "qwen3",
}
WRITE = "run .venv/bin/python tests/support/architectures.py, and read what changed in docs/models.md"
DOCUMENTED = documented()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]
)
def test_architecture(case: str, tmp_path: Path) -> None:
    assert examine(case, tmp_path) == DOCUMENTED[case], WRITE


def test_the_table_lists_every_kind() -> None:
    assert list(DOCUMENTED) == list(CASES), WRITE


def test_every_outcome_is_equal_or_a_reason() -> None:
    for row in DOCUMENTED.values():
        cells = row if row.training.startswith("equal") else (row.training,)
        assert all(cell.startswith(("equal", "refused: ", "not tried: ")) for cell in cells)
        assert cells == row or row == Row(row.training)


@pytest.mark.slow
def test_what_vllm_knows() -> None:
    registry = pytest.importorskip("vllm").ModelRegistry
    known = set(registry.get_supported_archs())
    assert documented_engine() == {
        class_name(case): "yes" if class_name(case) in known else "no" for case in CASES
    }
