"""TOFU: what a model that was made to forget still says, and what it has kept."""
