"""Terminal dashboard for RWML runs."""
