"""The easy-sample filter of RWML (arXiv 2602.05842, section 3)."""
