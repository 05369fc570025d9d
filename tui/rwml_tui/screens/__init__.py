"""Screens that lie over the tabs, one a file."""
