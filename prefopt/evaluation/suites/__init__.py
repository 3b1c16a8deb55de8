"""Sets of prompts: MT-Bench, AlpacaEval and a user's own, told apart by what the file holds."""

from prefopt.evaluation.suites.read import Suite, read_prompts, read_suite

__all__ = ["Suite", "read_prompts", "read_suite"]
