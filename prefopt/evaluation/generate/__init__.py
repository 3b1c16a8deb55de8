"""Answers of a system to prompts: by transformers on this machine, or by an endpoint."""
