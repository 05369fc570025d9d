"""Next-state supervised fine-tuning: the WM SFT baseline of the paper, and the warm-up of small models."""

from __future__ import annotations

from rwml_lightning.modules.sft import SFTModule


class WorldModelSFT(SFTModule):
    """Maximises the likelihood of the true next state after empty thinking (arXiv 2602.05842, section 4, WM SFT)."""

    stage = "wm_sft"
    reads = "predictions"
    learns = "labels"
