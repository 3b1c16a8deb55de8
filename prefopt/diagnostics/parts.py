"""Parts of a model, told by the names of parameters as transformers gives them."""

import re
from typing import Literal

Part = Literal["embedding", "attention", "mlp", "norm", "head", "other"]
PARTS: tuple[Part, ...] = ("embedding", "attention", "mlp", "norm", "head", "other")
"""In the order of a forward pass. A head that is tied to the embedding counts as embedding."""

_DEPTH = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")
# The first that fits: norms stand inside attention, and both inside layers. A last resort comes
# last, since an MLP has no common name.
_PATTERNS: tuple[tuple[Part, re.Pattern[str]], ...] = (
    ("norm", re.compile(r"norm|(^|\.)ln_\w+\.|layer_norm")),
    ("embedding", re.compile(r"embed|(^|\.)w[tp]e\.")),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|output)\.")),
    ("attention", re.compile(r"att(n|ention)|\.(mixer|conv|mamba)\.")),
    ("mlp", re.compile(r"mlp|feed_forward|ffn|moe|experts|\.(fc\d|gate|router)\.|block_sparse")),
)


def part_of(name: str) -> Part:
    """Which part of a model a parameter of that name belongs to; an adapter to what it adapts."""
    return next((part for part, pattern in _PATTERNS if pattern.search(name)), "other")


def depth_of(name: str) -> int | None:
    """The layer that a parameter of that name stands in, counted from 0; None outside layers."""
    found = _DEPTH.search(f".{name}")
    return None if found is None else int(found.group(1))
