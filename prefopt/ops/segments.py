"""Which tokens of a flat row look at which: sequences, and responses that continue one of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from prefopt.types import Layout


@dataclass(frozen=True, kw_only=True)
class Segments:
    """A row `[sequences | responses grouped by the sequence they continue]`, on the host.

    A token sees the earlier ones of its own segment, and a response's token also its whole prompt.
    """

    prompt_lengths: tuple[int, ...]
    """Of the sequences, in tokens, at least 1 each."""
    response_lengths: tuple[tuple[int, ...], ...]
    """For each sequence, the lengths of the responses that continue it, at least 1 each."""

    @classmethod
    def shared(cls, layout: Layout) -> "Segments":
        """Every prompt once, before all of its responses."""
        of_group: list[list[int]] = [[] for _ in layout.prompt_lengths]
        for slot, length in zip(layout.response_slots, layout.response_lengths, strict=True):
            of_group[slot // layout.num_slots].append(length)
        return cls(
            prompt_lengths=layout.prompt_lengths,
            response_lengths=tuple(map(tuple, of_group)),
        )

    @classmethod
    def packed(cls, layout: Layout) -> "Segments":
        """Every response behind a copy of its prompt, one whole sequence after the other."""
        lengths = tuple(
            layout.prompt_lengths[slot // layout.num_slots] + length
            for slot, length in zip(layout.response_slots, layout.response_lengths, strict=True)
        )
        return cls(prompt_lengths=lengths, response_lengths=((),) * len(lengths))

    @cached_property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first response."""
        return sum(self.prompt_lengths)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return self.num_prompt_tokens + sum(map(sum, self.response_lengths))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence together with what continues it."""
        return max(prompt.length + own.length for prompt, own in self.continuations())

    def prompts(self) -> Iterator["Piece"]:
        """Where the sequences lie."""
        starts = accumulate(self.prompt_lengths, initial=0)
        for start, length in zip(starts, self.prompt_lengths, strict=False):
            yield Piece(start, start + length)

    def groups(self) -> Iterator[tuple["Piece", list["Piece"]]]:
        """Each sequence and the responses that continue it."""
        start = self.num_prompt_tokens
        for prompt, lengths in zip(self.prompts(), self.response_lengths, strict=True):
            responses = []
            for length in lengths:
                responses.append(Piece(start, start + length))
                start += length
            yield prompt, responses

    def pieces(self) -> Iterator[tuple["Piece", "Piece"]]:
        """All tokens in order, each piece behind what it continues: its prompt, or nothing."""
        for prompt in self.prompts():
            yield Piece(prompt.start, prompt.start), prompt
        for prompt, responses in self.groups():
            for response in responses:
                yield prompt, response

    def continuations(self) -> Iterator[tuple["Piece", "Piece"]]:
        """Each response behind its prompt; a sequence without any behind an empty one."""
        for prompt, responses in self.groups():
            for response in responses:
                yield prompt, response
            if not responses:
                yield Piece(prompt.start, prompt.start), prompt


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens of the row."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """In tokens."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of attention: some neighbouring queries over some neighbouring keys."""

    queries: Piece
    keys: Piece
    is_causal: bool
    """Query i sees key j if j <= i, counted from the first of each; else it sees all."""
    window: int | None = None
    """Query i sees key j only if i + offset - j < window; None: no key is too far away."""
    offset: int = 0
    """Position of the first query after that of the first key."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The rectangles that together are a row's attention, without overlap.

    In `own` every token of the row is a query exactly once. `prefix` has those of responses over
    their prompts; within a window some see nothing there and are left out.
    """

    own: tuple[Part, ...]
    prefix: tuple[Part, ...]


@lru_cache(maxsize=64)
def parts_of(segments: Segments, window: int | None) -> Parts:
    """The rectangles of a row for layers of full attention, or of a sliding window.

    Args:
        segments: the row.
        window: how many tokens a token sees, itself included; None for all.
    """
    own: list[Part] = []
    prefix: list[Part] = []
    for prompt, responses in segments.groups():
        for piece in (prompt, *responses):
            binds = window is not None and piece.length > window
            own.append(Part(piece, piece, is_causal=True, window=window if binds else None))
        longest = prompt.length + max((each.length for each in responses), default=0)
        if window is not None and longest > window:
            prefix.extend(part for each in responses for part in _windowed(prompt, each, window))
        elif responses:
            queries = Piece(responses[0].start, responses[-1].stop)
            prefix.append(Part(queries, prompt, is_causal=False))
    own.sort(key=lambda part: part.queries.start)
    return Parts(tuple(own), tuple(prefix))


def _windowed(prompt: Piece, response: Piece, window: int) -> Iterator[Part]:
    """The first tokens of a response over the last of its prompt; each sees at least one."""
    num_queries = min(response.length, window - 1)
    num_keys = min(prompt.length, window - 1)
    if num_queries > 0:
        yield Part(
            Piece(response.start, response.start + num_queries),
            Piece(prompt.stop - num_keys, prompt.stop),
            is_causal=False,
            window=window,
            offset=num_keys,
        )
