"""``benchmarks/gpu.py`` with small sizes: its parts end with sensible figures, and one that fails leaves the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from gpu_parts.report import Report, part_tables, read_results

Results = dict[str, dict[str, Any]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def measure(part: str, folder: Path) -> Results:
    """Run a part with small sizes; return the figures of each case."""
    done = run(part, "--tiny", "--output", str(folder / "results.jsonl"))
    assert done.returncode == 0, done.stdout + done.stderr
    results = read_results(folder / "results.jsonl")
    assert {result["part"] for result in results} == {part}
    return {result.pop("case"): result for result in results}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_packed_equals_plain(tmp_path: Path) -> None:
    found = measure("packed", tmp_path)
    exact, rounded = found["tiny, equal in float32"], found["tiny, off float32 in bfloat16"]
    assert 0 < exact["nats"] < 1e-4
    assert exact["gradient"] < 1e-3
    assert exact["within_tolerance"]
    assert exact["nats"] < rounded["nats_plain"] < 0.1
    assert exact["gradient"] < rounded["gradient_plain"] < 0.1
    assert rounded["within_tolerance"]
    for checkpointing in ("none", "selective"):
        plain, packed = (found[f"tiny, {way}, checkpointing {checkpointing}"] for way in ("plain", "packed"))
        assert plain["passes"] == packed["passes"] == 1
        assert plain["tokens_per_s"] == pytest.approx(4 * (48 + 8) / plain["seconds"])
        assert packed["times_plain"] == pytest.approx(plain["seconds"] / packed["seconds"])


def test_operations_are_those_of_the_matrix_products() -> None:
    from gpu_parts import packed
    from gpu_parts.models import random_model
    from torch.utils.flop_counter import FlopCounterMode

    model = random_model("tiny", torch.float32).train()
    group = packed.Group(prompt=40, completion=10, size=3, budget=200)
    sequences = group.sequences(model.config.vocab_size)
    (plain,) = packed.both_ways(model, sequences, group)["plain"]
    with FlopCounterMode(display=False) as counter:
        plain().sum().backward()
    counted = sum(
        flops for operator, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(operator)
    )
    # The counter knows no attention here: 4 x width operations per layer and pair of tokens, and twice that backwards.
    attention = 3 * 4 * 128 * 2 * sum(range(1, 51)) * 3
    operations = packed.count_operations(model, sequences, group)
    assert operations["plain"] - attention == pytest.approx(counted, rel=0.002)
    # The tree has the prompt once, and no node for the last token of a completion, which predicts nothing.
    body = sum(parameter.numel() for parameter in model.model.layers.parameters())
    tree_attention = 3 * 4 * 128 * 2 * (sum(range(1, 41)) + 3 * sum(range(41, 50)))
    head = 6 * 128 * 512 * 30
    assert operations["packed"] == 6 * body * (40 + 3 * 9) + tree_attention + head


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_both_generators_sample_all_tokens(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    found = measure("generation", tmp_path)
    for name in ("HFGenerator", "VLLMGenerator"):
        sampled = found[f"tiny, {name}, 2 x 2 of 8 after 24"]
        assert sampled["tokens"] == 2 * 2 * 8
        assert sampled["tokens_per_s"] == pytest.approx(32 / sampled["seconds"])
    apart = found["tiny, log-probabilities apart"]
    assert 0 < apart["nats"] <= apart["largest_nats"] < 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weights_arrive_by_every_path(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    found = measure("transfer", tmp_path)
    attached = found["tiny, attached module"]
    copied, files = found["tiny, copy into another module"], found["tiny, files in shared memory"]
    assert attached["gib"] == 0
    # Two layers of 128 x (128 + 64 + 64 + 128 + 3 x 256) with biases and norms, a norm, and 512 embeddings, all in bfloat16.
    num_parameters = 2 * (128 * 1152 + 128 + 64 + 64 + 2 * 128) + 128 + 512 * 128
    for path in (copied, files):
        assert path["gib"] == pytest.approx(2 * num_parameters / 2**30)
        assert path["gib_per_s"] == pytest.approx(path["gib"] / path["seconds"])
        assert path["digest_share"] == pytest.approx(path["digest_seconds"] / path["seconds"])


@pytest.mark.heavy
def test_a_part_that_hangs_leaves_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    done = run("packed", "transfer", "--tiny", "--limit", "0.2", "--output", str(path))
    assert done.returncode == 1
    assert [(result["part"], result["failed"]) for result in read_results(path)] == [
        ("packed", "did not end within 0.2 s"),
        ("transfer", "did not end within 0.2 s"),
    ]
    assert "packed" in done.stdout
    assert "transfer" in done.stdout


@pytest.mark.heavy
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "There is no CUDA card here; --tiny"),
        (("packed", "sleep", "--tiny"), "which these parts need: sleep."),
    ],
)
def test_without_a_card_it_says_so_in_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_case_that_fails_is_a_result(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "results.jsonl"
    Report("before", path, {}).add("an earlier run")
    start = path.stat().st_size
    report = Report("part", path, {"card": "a card"})
    with report.attempt("first"):
        raise ValueError("no\nmore")
    with report.attempt("second"):
        report.add("second", seconds=0.5, share_of_peak=None)
    assert report.num_failures == 1
    results = read_results(path, start)
    assert results == [
        {"card": "a card", "part": "part", "case": "first", "failed": "ValueError: no"},
        {"card": "a card", "part": "part", "case": "second", "seconds": 0.5, "share_of_peak": None},
    ]
    failed, measured = part_tables("part", results, common=("card", "part"))
    assert [column.header for column in failed.columns] == ["case", "failed"]
    assert [list(column.cells) for column in measured.columns] == [["second"], ["0.5"]]
