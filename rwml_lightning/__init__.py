"""Reinforcement World Model Learning: train language-model agents to predict the effects of their actions."""
