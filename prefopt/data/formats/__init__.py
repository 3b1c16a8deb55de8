"""How rows of the known data sets become records. A new format is one entry of FORMATS."""

from prefopt.data.formats.base import Content, Format, Row, RowError
from prefopt.data.formats.lists import HELPSTEER2, HELPSTEER3, LISTS, NECTAR, ULTRAFEEDBACK
from prefopt.data.formats.pairs import BINARIZED, PAIRS, SHAREGPT_PAIRS, TRANSCRIPTS
from prefopt.data.formats.single import (
    COMPLETIONS,
    INSTRUCTIONS,
    LABELLED_MESSAGES,
    LABELLED_SHAREGPT,
    MESSAGES,
    QUESTIONS,
    SHAREGPT,
    UNPAIRED,
)

FORMATS: tuple[Format, ...] = (
    LISTS,
    ULTRAFEEDBACK,
    NECTAR,
    HELPSTEER3,
    HELPSTEER2,
    SHAREGPT_PAIRS,
    TRANSCRIPTS,
    BINARIZED,
    PAIRS,
    UNPAIRED,
    COMPLETIONS,
    LABELLED_MESSAGES,
    MESSAGES,
    LABELLED_SHAREGPT,
    SHAREGPT,
    INSTRUCTIONS,
    QUESTIONS,
)
"""All formats, in the order in which detection asks them: the richer before the plainer."""

__all__ = ["FORMATS", "Content", "Format", "Row", "RowError"]
