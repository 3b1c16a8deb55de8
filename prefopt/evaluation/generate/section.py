"""How a system answers: length, temperature, seeds."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.types import Prompt
from prefopt.section import Section

PRESETS: dict[str, dict[str, float]] = {
    "mt_bench": {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }
}
"""Temperatures by category; of MT-Bench those of FastChat (`common.py`, temperature_config)."""

_Temperature = Annotated[float, Field(ge=0, le=10)]


class GenerationSection(Section):
    """What an answer depends on beside the model and the prompt."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens of one turn at most; an answer that is cut there counts as cut."""
    temperature: float = Field(default=0.0, ge=0, le=10)
    """0 takes the likeliest token each time; 1 draws from the model as it is."""
    temperature_by_category: dict[str, _Temperature] = Field(default_factory=dict)
    """Temperatures of some categories, which go before `temperature`; `mt_bench` for those of
    MT-Bench."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together have this probability."""
    top_k: int = Field(default=0, ge=0)
    """Draw from so many of the likeliest tokens; 0 from all."""
    num_samples: int = Field(default=1, ge=1)
    """Answers per prompt."""
    seed: int = Field(default=0, ge=0)
    """Of all draws; an answer's own follows from it, the prompt and the number of the sample."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts answered at once on this machine; without effect on an endpoint."""
    system: str | None = None
    """A system message before every prompt that has none of its own."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are not part of it."""

    @field_validator("temperature_by_category", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PRESETS:
            raise UserError(
                f"temperature_by_category: no preset '{value}'. {did_you_mean(value, PRESETS)}"
            )
        return PRESETS[value]

    @model_validator(mode="after")
    def _all_has_an_effect(self) -> "GenerationSection":
        if any(not text for text in self.stop):
            raise UserError("stop: an empty text would end every answer at once. Remove it.")
        if any((self.temperature, *self.temperature_by_category.values())):
            return self
        if self.num_samples > 1:
            raise UserError(
                f"num_samples: at temperature 0 all {self.num_samples} would be the same. "
                "Set a temperature, or num_samples=1."
            )
        for name in ("top_p", "top_k"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"{name} has no effect at temperature 0. Set a temperature.")
        return self

    def temperature_of(self, prompt: Prompt) -> float:
        """That of its category, else the common one."""
        return self.temperature_by_category.get(prompt.category or "", self.temperature)
