"""The embedded task: data with a known gold score, generated from a seed, and a tiny model."""
