"""Untrusted text made safe for terminals and files: control characters are shown as escapes and never executed.

Standard library only.

Text from a model, an environment, a config, a run store or a folder's name is untrusted. A terminal executes the control
sequences in it: they write to the clipboard, change the window's title and move the cursor. Text direction marks make a
line look like another one. All text for a terminal therefore passes through :func:`split_hidden`: ``print``, logs and
warnings through :func:`printable`, tables through :class:`rwml_lightning.terminal.Terminal`, and the dashboard through
:func:`rwml_tui.text.visible`. Text for a destination that accepts only UTF-8 passes through :func:`well_formed`.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"  # emoji and several scripts need them
_NOT_PLAIN = re.compile(r"([^\n -~])")


def split_hidden(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text into (part, is_escape) pairs, where an escape such as ``\\x1b`` replaces a hidden character.

    Hidden characters are control characters except the newline, formatting characters except the joiners, lone surrogates,
    and Unicode's line and paragraph separators.
    """
    for place, part in enumerate(_NOT_PLAIN.split(text)):
        if (
            place % 2 == 1
            and unicodedata.category(part) in ("Cc", "Cf", "Cs", "Zl", "Zp")
            and part not in _JOINERS
        ):
            yield repr(part)[1:-1], True
        elif part:
            yield part, False


def printable(text: object) -> str:
    """Convert an object to text in which an escape replaces each character that could control a terminal."""
    return "".join(part for part, _ in split_hidden(str(text)))


def well_formed(text: str) -> str:
    """Replace each lone surrogate by U+FFFD, since files, tokenizers and servers do not accept it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class PrintableRecord(logging.LogRecord):
    """A log record with a printable message and traceback, for every handler of every library."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.exc_info:
            # Formatters use exc_text if it is set.
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        """Return the printable message with its arguments."""
        return printable(super().getMessage())


class PrintableStream(io.TextIOBase):
    """Stream that makes text printable and writes it to another stream.

    Args:
        stream: Stream that receives the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write the whole text."""
        self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Flush the other stream."""
        self.stream.flush()


def guard_terminal() -> None:
    """Make logs, warnings and uncaught exceptions printable before they reach standard error."""
    logging.setLogRecordFactory(PrintableRecord)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    warnings.showwarning = _show_warning
    sys.excepthook = _show_exception


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = warnings.formatwarning(message, category, filename, lineno, line)
    print(printable(text), end="", file=file or sys.stderr)


def _show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(printable("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
