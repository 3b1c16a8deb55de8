"""What a recipe says of diagnostics."""

from pydantic import Field

from prefopt.section import Section


class DiagnosticsSection(Section):
    """What is measured while a run trains; no update depends on it."""

    every: int = Field(default=50, ge=1)
    """Measure at the first step, at every so many, and at the last."""
    groups: int = Field(default=8, ge=1)
    """How many groups of such a step are looked at, and how many fixed ones: of data.evaluation,
    or without it the first that are trained on."""
