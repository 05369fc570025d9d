"""The commands that Lightning does not have, one per file."""
