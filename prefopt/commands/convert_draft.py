"""A recipe before it is written: values with comments, and the text that has both."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

_COMMENT_COLUMN = 36


@dataclass(frozen=True, slots=True)
class Draft:
    """Sections of a recipe in the order in which they are written."""

    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    """`section.key` -> what stands behind it."""

    def put(self, section: str, key: str, value: Any, comment: str = "") -> None:
        """Say a key, with a comment where TRL's word for it meant something else."""
        self.sections.setdefault(section, {})[key] = value
        if comment:
            self.comments[f"{section}.{key}"] = comment

    def text(self, heading: Iterable[str]) -> str:
        """The recipe as YAML, below lines of comment."""
        lines = [f"# {line}" for line in heading]
        for section, values in self.sections.items():
            lines.append(f"{section}:")
            for key, value in values.items():
                said = f"  {key}: {_flow(value)}"
                comment = self.comments.get(f"{section}.{key}")
                lines.append(f"{said:<{_COMMENT_COLUMN}} # {comment}" if comment else said)
        return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    dumped = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True
    )
    return dumped.removesuffix("...\n").strip()
