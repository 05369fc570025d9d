"""Imitation: the policy learns from episodes that were solved, an expert's or its own (RFT)."""

from __future__ import annotations

from rwml_lightning.modules.sft import SFTModule


class PolicySFT(SFTModule):
    """Maximises the likelihood of the answers in ``data.episodes.demonstrations``, turn by turn, after what the policy would have read.

    With an expert's episodes this is imitation learning, with the policy's own successes rejection-sampling fine-tuning.
    """

    stage = "policy_sft"
    reads = "episodes"
    learns = "labels"
