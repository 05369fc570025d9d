"""Contents of the tabs, one per file."""
