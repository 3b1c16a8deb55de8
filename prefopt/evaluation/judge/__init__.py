"""Judges: what asks which answer is better, or how good one is, and keeps every reply."""
