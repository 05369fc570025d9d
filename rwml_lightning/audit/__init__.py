"""What a reward can and cannot see, told before any training."""

from rwml_lightning.audit.measure import Audit, Choice, Row, audit_reward, choose_tau

__all__ = ["Audit", "Choice", "Row", "audit_reward", "choose_tau"]
