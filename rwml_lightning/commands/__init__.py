"""The commands beside Lightning's own, one a file."""
