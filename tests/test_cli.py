"""Commands that need no training: what they refuse, in one line, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwml_lightning.cli import main
from rwml_lightning.data.transitions import write_transitions
from support.command_line import error_of
from support.runs import make_config, write_config
from support.worlds import make_world


@pytest.mark.heavy
def test_export_names_a_missing_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--ckpt_path", str(tmp_path / "no.ckpt"), "--output", str(tmp_path / "out")]
    assert error_of(arguments, capsys) == f"error: --ckpt_path names {tmp_path}/no.ckpt, which is not a file"


@pytest.mark.heavy
def test_export_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({}, tmp_path / "a.ckpt")
    (tmp_path / "out").mkdir()
    arguments = ["export", "--ckpt_path", str(tmp_path / "a.ckpt"), "--output", str(tmp_path / "out")]
    assert "which already exists; name a new folder" in error_of(arguments, capsys)


@pytest.mark.heavy
@pytest.mark.parametrize("content", ["foreign", "no torch file"])
def test_export_refuses_what_is_no_checkpoint_of_ours(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    if content == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_text(content)
    message = error_of(["export", "--ckpt_path", str(path), "--output", str(tmp_path / "out")], capsys)
    assert "not a complete checkpoint of rwml-lightning" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_export_without_arguments_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export"])
    assert stopped.value.code == 2
    assert "ckpt_path" in capsys.readouterr().err


@pytest.mark.heavy
def test_a_model_that_is_not_there_is_named_before_a_run_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(["fit", "--config", str(make_config(tmp_path, "./no/model"))], capsys)
    assert "'./no/model': no such folder" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.heavy
def test_what_lightning_refuses_ends_in_one_line(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_model)
    message = error_of(["fit", "--config", str(config), "--trainer.max_time", "00:0:03:12"], capsys)
    assert "'00:0:03:12'" in message
    assert "DD:HH:MM:SS" in message


@pytest.mark.heavy
def test_collect_needs_to_know_where(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, tiny_model)
    assert "data.environment and data.predictions.collection to collect it" in error_of(
        ["collect", "--config", str(config)], capsys
    )


@pytest.mark.heavy
def test_collect_leaves_a_file_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transitions(tmp_path / "t.parquet", make_world())
    before = (tmp_path / "t.parquet").read_bytes()
    main(["collect", "--config", str(make_config(tmp_path, tiny_model))])
    assert (
        "already exists; to collect again, name another file in data.predictions.transitions"
        in capsys.readouterr().out
    )
    assert (tmp_path / "t.parquet").read_bytes() == before


@pytest.mark.heavy
def test_validate_shows_results_beside_floors(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transitions(tmp_path / "t.parquet", make_world())
    main(["validate", "--config", str(make_config(tmp_path, tiny_model))])
    printed = capsys.readouterr().out
    assert "Held-out transitions" in printed
    assert "Floors" in printed
    assert "not_knowable" not in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.heavy
def test_validate_without_held_out_transitions_says_so(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transitions(tmp_path / "t.parquet", [t for t in make_world() if t.split == "train"])
    message = error_of(["validate", "--config", str(make_config(tmp_path, tiny_model))], capsys)
    assert message == f"error: {tmp_path}/t.parquet holds no validation transitions"


@pytest.mark.heavy
def test_a_broken_row_stops_a_run_unless_it_may_be_skipped(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world()
    write_transitions(tmp_path / "t.parquet", [*world, world[0]])
    message = error_of(["validate", "--config", str(make_config(tmp_path, tiny_model))], capsys)
    assert f"row {len(world)}: transition_id 'take-apple' occurs twice" in message
    main(["validate", "--config", str(make_config(tmp_path, tiny_model, predictions={"on_broken": "skip"}))])
    assert "Held-out transitions" in capsys.readouterr().out
