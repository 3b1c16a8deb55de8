"""A JSON array of any size, element by element."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_BLOCK = 1 << 20


class BrokenJson(ValueError):
    """Where and how a file stops being a JSON array."""

    def __init__(self, line: int, column: int, problem: str) -> None:
        super().__init__(f"line {line}, column {column}: {problem}")
        self.line = line
        self.column = column
        self.problem = problem


def elements(path: Path) -> Iterator[object]:
    """The elements of the array in a UTF-8 file, holding one in memory at a time.

    Raises:
        BrokenJson: at the first place that is no JSON.
        UnicodeDecodeError: if the file is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(file)
        window.skip("[")
        first = True
        while not window.starts_with("]"):
            if not first:
                window.skip(",")
            first = False
            yield window.value()
        window.skip("]")
        if not window.is_at_end():
            raise window.broken("more text after the end of the array")


class _Window:
    """A piece of a file that grows until the value that starts in it is whole."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._ended = False
        self._lines_behind = 0
        self._columns_behind = 0

    def starts_with(self, mark: str) -> bool:
        """Whether `mark` comes next, after whitespace."""
        self._skip_space()
        return self._text.startswith(mark, self._position)

    def is_at_end(self) -> bool:
        """Whether nothing but whitespace is left."""
        self._skip_space()
        return self._position == len(self._text)

    def skip(self, mark: str) -> None:
        """Go past `mark`, which must come next."""
        if not self.starts_with(mark):
            raise self.broken(f"Expecting '{mark}'")
        self._position += len(mark)

    def value(self) -> object:
        """The JSON value that comes next."""
        self._skip_space()
        wanted = _BLOCK
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._ended:
                    self._position = error.pos
                    raise self.broken(error.msg) from error
            else:
                # A number that touches the end of the window could go on.
                if end < len(self._text) or self._ended:
                    self._position = end
                    parsed: object = value
                    return parsed
            self._grow(wanted)
            wanted *= 2

    def broken(self, problem: str) -> BrokenJson:
        """The error at the present position."""
        line, column = self._place()
        return BrokenJson(line + 1, column + 1, problem)

    def _place(self) -> tuple[int, int]:
        """Lines and columns from the start of the file to the position, counted from 0."""
        newlines = self._text.count("\n", 0, self._position)
        if not newlines:
            return self._lines_behind, self._columns_behind + self._position
        last = self._text.rfind("\n", 0, self._position)
        return self._lines_behind + newlines, self._position - last - 1

    def _skip_space(self) -> None:
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\n\r":
                self._position += 1
            if self._position < len(self._text) or self._ended:
                return
            self._grow(_BLOCK)

    def _grow(self, num_characters: int) -> None:
        """Read on and forget what lies behind."""
        self._lines_behind, self._columns_behind = self._place()
        more = self._file.read(num_characters)
        self._ended = not more
        self._text = self._text[self._position :] + more
        self._position = 0
