"""Several methods trained alike and compared: what to train, in which order, and what it says."""
