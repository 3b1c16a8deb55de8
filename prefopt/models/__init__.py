"""Policies, adapters, references, and the head that turns hidden states into log-probs."""
