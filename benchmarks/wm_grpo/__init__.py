"""The two sides of ``wm_grpo_vs_trl.py``: one world-model GRPO step in this project and in TRL."""
