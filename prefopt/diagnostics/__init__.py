"""What a step does to the log-probs of the responses it learns from, and why."""
