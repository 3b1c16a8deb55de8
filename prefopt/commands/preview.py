"""What the model will read, as colours: prompt tokens dim, scored tokens bright, the end marked."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from prefopt.data.store import TokenStore
from prefopt.data.tokenize import Encoder, Tokenizer
from prefopt.types import TokenizedRecord

_SCORED = ("green", "cyan")
"""Neighbouring tokens take turns, so that their borders show."""
_MOST_TOKENS = 120
"""Of a longer sequence the middle is left out."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


def render_preview(
    store: TokenStore, tokenizer: Tokenizer, console: Console, num_records: int
) -> None:
    """Print the first records, each with its prompt once and its responses below."""
    encoder = Encoder(tokenizer)
    for index in range(min(num_records, len(store))):
        console.print(_record(store[index], encoder))


def _record(record: TokenizedRecord, encoder: Encoder) -> Panel:
    prompt_ids: list[int] = record.prompt_ids.tolist()
    parts = [_heading(f"prompt, {len(prompt_ids)} tokens, not scored")]
    parts.append(_tokens(prompt_ids, encoder, ("dim",)))
    for number, (ids, score) in enumerate(
        zip(record.response_ids, record.scores, strict=True), start=1
    ):
        parts.append(_heading(f"response {number}, score {score:g}, {len(ids)} tokens"))
        parts.append(_response(ids.tolist(), encoder))
    return Panel(Group(*parts), title=Text(record.id), title_align="left")


def _heading(words: str) -> Text:
    return Text(words, style="bold")


def _response(ids: list[int], encoder: Encoder) -> Text:
    """The scored tokens; the last one is marked if it ends the sequence, else the cut is said."""
    ends = ids[-1] in encoder.end_ids
    shown = _tokens(ids[:-1] if ends else ids, encoder, _SCORED)
    if ends:
        return shown.append(encoder.decode(ids[-1:]), style="bold reverse")
    return shown.append(" [cut at max_length, no end]", style="bold red")


def _tokens(ids: list[int], encoder: Encoder, styles: Sequence[str]) -> Text:
    if len(ids) <= _MOST_TOKENS:
        return _pieces(ids, encoder, styles)
    half = _MOST_TOKENS // 2
    left_out = f"\n... {len(ids) - 2 * half} tokens ...\n"
    start = _pieces(ids[:half], encoder, styles).append(left_out, style="dim italic")
    return start.append_text(_pieces(ids[-half:], encoder, styles))


def _pieces(ids: list[int], encoder: Encoder, styles: Sequence[str]) -> Text:
    """Token by token; tokens that hold parts of one character are shown as one."""
    text = Text()
    waiting: list[int] = []
    turn = 0
    for position, token_id in enumerate(ids):
        waiting.append(token_id)
        piece = encoder.decode(waiting)
        if piece.endswith(_UNFINISHED) and position + 1 < len(ids):
            continue
        text.append(piece, style=styles[turn % len(styles)])
        turn += 1
        waiting = []
    return text
