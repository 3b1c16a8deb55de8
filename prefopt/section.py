"""What all sections of a recipe have in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A frozen part of a recipe that refuses unknown keys, infinite numbers and mixed-up booleans.

    The docstring under a field is its documentation: meaning, unit, range, effect.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: Any) -> Any:
        """Pydantic alone would read `beta: true` as 1.0, and `shuffle: 1` as true."""
        annotation = cls.model_fields[info.field_name].annotation
        if annotation is bool and not isinstance(value, bool):
            raise ValueError("should be true or false")
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("should not be true or false")
        return value
