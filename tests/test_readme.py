"""The README's commands work as they stand there; the long one is shortened by overrides."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for line in block.strip().splitlines()
]
SHORT = (
    "--trainer.max_steps 1 --warm_up.num_transitions 8 --data.predictions.validation.num_transitions 4 --data.predictions.prompts_per_step 2 "
    "--data.predictions.group_size 4 --data.predictions.sampling.max_tokens 24 --data.environment.games.num_train 3 --data.environment.games.num_validation 1 "
    "--data.environment.games.difficulty tiny --data.predictions.collection.max_turns 6"
)


def run(command: str, timeout: float = 280) -> str:
    process = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "COLUMNS": "120"}, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def test_every_command_of_the_readme_is_known_here() -> None:
    assert COMMANDS == [
        "make quickstart",
        ".venv/bin/rwml-tui",
        ".venv/bin/python -m rwml_lightning fit --config configs/quickstart.yaml --run.name threshold --data.predictions.reward.init_args.mode threshold",
        ".venv/bin/python -m rwml_lightning fit --config configs/quickstart.yaml --print_config",
        ".venv/bin/python -m rwml_lightning collect --config configs/quickstart.yaml --data.predictions.transitions data/more.parquet",
        ".venv/bin/python -m rwml_lightning validate --config configs/quickstart.yaml --model.init_args.init_from runs/quickstart/export",
        ".venv/bin/python -m rwml_lightning export --ckpt_path CHECKPOINT --output DIR",
        ".venv/bin/python -m rwml_lightning evaluate --config configs/quickstart.yaml --models package:smollm2-135m-instruct runs/quickstart/export",
    ]


@pytest.mark.heavy
def test_print_config() -> None:
    assert "tau_d: 0.2" in run(COMMANDS[3])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quickstart_then_the_other_commands(tmp_path: Path) -> None:
    data = f"--data.predictions.transitions {tmp_path}/transitions.parquet --data.environment.games.folder {tmp_path}/games"
    short = f"--run.root {tmp_path}/runs --checkpoint_every 1 {data} {SHORT}"
    out = run(f'make quickstart ARGS="{short}"', timeout=600)
    for words in ("after warm-up", "floor: template", "predicted next state", "rwml-tui"):
        assert words in out
    run_folder = tmp_path / "runs" / "quickstart"
    assert {"config.yaml", "trace.db", "metrics.csv", "checkpoints", "export"} <= {
        f.name for f in run_folder.iterdir()
    }

    again = run(f'make quickstart ARGS="{short}"', timeout=120)
    assert "floor: template" in again
    assert not (tmp_path / "runs" / "quickstart-2").exists()

    checkpoint = next((run_folder / "checkpoints").glob("*.ckpt"))
    run(f".venv/bin/python -m rwml_lightning export --ckpt_path {checkpoint} --output {tmp_path}/exported")
    assert (tmp_path / "exported" / "model.safetensors").stat().st_size > 1 << 28

    hf = "--data.generator rwml_lightning.generation.HFGenerator"
    out = run(
        f"{COMMANDS[5]} {data} {SHORT} {hf} --model.init_args.init_from {tmp_path}/exported", timeout=280
    )
    assert "Held-out transitions" in out

    models = f"--models package:smollm2-135m-instruct {tmp_path}/exported --output {tmp_path}/compared"
    out = run(f"{COMMANDS[7].partition('--models')[0]} {models} {data} {SHORT} {hf}", timeout=280)
    assert "to the first" in out
    assert (tmp_path / "compared" / "comparison.json").is_file()
