"""``export``: convert a Lightning checkpoint to a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules.exporting import export_policy
from rwml_lightning.modules.loading import checkpoint_policy, load_policy
from rwml_lightning.printable import printable

PROBE = "You open the fridge. In it, you see an apple, an egg and a bottle of milk. You take the apple."


def export(ckpt_path: str, output: str) -> None:
    """Write a checkpoint's policy as a Hugging Face folder (safetensors, adapters merged).

    Args:
        ckpt_path: Lightning checkpoint of any stage.
        output: Folder to write; it must not exist.

    Raises:
        ValueError: The checkpoint does not exist or is not from rwml-lightning, the folder exists, or the written model
            differs from the checkpoint's policy.
    """
    checkpoint, folder = Path(ckpt_path), Path(output)
    if not checkpoint.is_file():
        raise ValueError(f"--ckpt_path names {checkpoint}, which is not a file")
    if folder.exists():
        raise ValueError(f"--output names {folder}, which already exists; name a new folder")
    saved = checkpoint_policy(checkpoint)
    policy, tokenizer = load_policy(**saved, init_from=str(checkpoint)), load_tokenizer(saved["model"])
    export_policy(policy, tokenizer, folder, tokenizer.encode(PROBE))
    print(printable(f"wrote {folder}"))
