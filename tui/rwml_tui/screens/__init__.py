"""Screens on top of the tabs, one per file."""
