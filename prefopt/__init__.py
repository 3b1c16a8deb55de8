"""Preference optimisation of language models: one core, any objective."""

__version__ = "0.1.0"
