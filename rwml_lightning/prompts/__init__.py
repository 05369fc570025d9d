"""Prompts as token ids, and the chat templates that make them."""
