"""LightningModules, one per stage."""

from rwml_lightning.modules.adapters import LoRA
from rwml_lightning.modules.grpo import GRPO
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.modules.policy_grpo import PolicyGRPO
from rwml_lightning.modules.policy_sft import PolicySFT
from rwml_lightning.modules.wm_grpo import WorldModelGRPO
from rwml_lightning.modules.wm_sft import WorldModelSFT

__all__ = ["GRPO", "LoRA", "Optimizer", "PolicyGRPO", "PolicySFT", "WorldModelGRPO", "WorldModelSFT"]
