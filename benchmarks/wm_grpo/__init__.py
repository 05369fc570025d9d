"""Both sides of ``wm_grpo_vs_trl.py``: one world-model GRPO step, here and in TRL."""
