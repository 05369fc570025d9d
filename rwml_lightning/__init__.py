"""Reinforcement World Model Learning: train language-model agents to foresee what their actions do."""
