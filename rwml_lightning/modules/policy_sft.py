"""Policy SFT: the policy learns from solved episodes of an expert (imitation) or of the policy itself (RFT)."""

from __future__ import annotations

from rwml_lightning.modules.sft import SFTModule


class PolicySFT(SFTModule):
    """Maximises the likelihood of each answer in ``data.episodes.demonstrations``, given the policy's prompt of that turn.

    With episodes of an expert this is imitation learning. With successful episodes of the policy it is
    rejection-sampling fine-tuning.
    """

    stage = "policy_sft"
    reads = "episodes"
    learns = "labels"
