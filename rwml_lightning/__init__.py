"""Reinforcement World Model Learning: train language-model agents to predict what their actions do."""
