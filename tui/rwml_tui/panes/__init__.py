"""What the tabs hold, one a file."""
