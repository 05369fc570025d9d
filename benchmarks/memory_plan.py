"""Compare the planned memory of a training process with its measured peak on a CPU.

    python benchmarks/memory_plan.py                    the quickstart's model, every kind of checkpointing
    python benchmarks/memory_plan.py --model FOLDER --tokens 512

Each case is a process of its own, which takes two optimizer steps of two micro-batches; the second step is measured. Activations are the
peak of the resident memory without weights, gradients and moments. ``--case`` runs one case in this process and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

MODEL = "package:smollm2-135m-instruct"
SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16, int8 moments": {"dtype": "bfloat16", "stochastic_rounding": True, "moments": "int8"},
}


def resident(key: str = "VmRSS") -> int:
    """Bytes of resident memory now, or its peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def run_case(model: str, checkpointing: Any, tokens: int, setting: str) -> dict[str, float]:
    """Train two steps and return planned and measured bytes."""
    import lightning as L
    import torch

    from rwml_lightning.memory import Hardware, machine_memory, plan
    from rwml_lightning.models import causal_config
    from rwml_lightning.modules import Optimizer, WorldModelSFT
    from rwml_lightning.schema import Label, LabelledBatch

    settings = dict(SETTINGS[setting])
    module = WorldModelSFT(
        model=model,
        dtype=settings.pop("dtype", "float32"),
        gradient_checkpointing=checkpointing,
        max_tokens_per_micro_batch=tokens,
        optimizer=Optimizer(1e-5, **settings),
    )
    planned = plan(module, None, [], Hardware("cpu", machine_memory()))
    sizes = {part.name: part.num_bytes.get("update", 0.0) for part in planned.parts}
    vocabulary = causal_config(model).get_text_config().vocab_size
    draw = random.Random(0)

    def labels(step: int) -> LabelledBatch:
        rows = []
        for group in range(2):  # each fills a micro-batch: a prompt of half of the tokens, and 8 answers
            prompt = tuple(draw.randrange(vocabulary) for _ in range(tokens // 2))
            length = tokens // 2 // 8
            rows += [Label(f"{group}", prompt, tuple(draw.randrange(vocabulary) for _ in range(length))) for _ in range(8)]  # fmt: skip
        return LabelledBatch(step, tuple(rows))

    class Watch(L.Callback):
        found: dict[str, float]

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self.before = resident()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            parameters = list(pl_module.policy.parameters())
            held = parameters + list(pl_module.policy.buffers())
            held += [p.grad for p in parameters if p.grad is not None]
            gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
            state = optimizer.state.values()
            held += [v for one in state for k, v in one.items() if k != "step"]
            kept = sum(t.numel() * t.element_size() for t in held)
            activations = resident("VmHWM") - self.before - gradients
            self.found = {"measured_kept": kept, "measured_activations": activations}

    class Batches(L.LightningDataModule):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                [labels(0), labels(1)], batch_size=None, collate_fn=lambda b: b
            )  # type: ignore[arg-type]

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(module, Batches())
    kept = sizes["weights"] + sizes["gradients"] + sizes["moments"]
    return {"planned_kept": kept, "planned_activations": sizes["activations"], **watch.found}


def run_in_process(model: str, checkpointing: str, tokens: int, setting: str) -> dict[str, float]:
    """Run a case in a process whose freed memory goes back to the system at once."""
    case = json.dumps([model, checkpointing, tokens, setting])
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a table of planned and measured GiB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--case")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(*json.loads(options.case))))
        return
    from rich.table import Table

    from rwml_lightning.terminal import Terminal

    table = Table(title=f"{options.model}, micro-batches of {options.tokens} tokens, GiB")
    for column in ("weights", "checkpointing", "kept: plan", "measured", "ratio", "activations: plan", "measured", "ratio"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("weights", "checkpointing") else "right")
    for setting in SETTINGS:
        for checkpointing in ("none", "selective", "full"):
            found = run_in_process(options.model, checkpointing, options.tokens, setting)
            row = [setting, checkpointing]
            for what in ("kept", "activations"):
                planned, measured = found[f"planned_{what}"], found[f"measured_{what}"]
                row += [f"{planned / 2**30:.3f}", f"{measured / 2**30:.3f}", f"{planned / measured:.2f}"]
            table.add_row(*row)
    Terminal().print(table)


if __name__ == "__main__":
    main()
