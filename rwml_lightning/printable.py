"""Foreign text as a terminal may show it and a file may hold it: control characters are shown, never obeyed.

Standard library only.

Foreign is what a model, an environment, a config, a run store or a folder's name says. A terminal obeys control sequences in
it: they write to the clipboard, change the window's title and move the cursor; marks of text direction make a line read as
another one. All text on its way to a terminal passes :func:`split_hidden`: ``print``, logs and warnings by :func:`printable`, tables by
:class:`rwml_lightning.terminal.Terminal`, the dashboard by :func:`rwml_tui.text.visible`. Text on its way to what takes
UTF-8 alone passes :func:`well_formed`.
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

_JOINERS = "\u200c\u200d"  # emoji and several scripts are written with them
_NOT_PLAIN = re.compile(r"([^\n -~])")


def split_hidden(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a text in order, each with whether it is an escape, such as ``\\x1b``, for a character that is not shown.

    Control characters but the newline, formatting characters but the joiners, lone surrogates and Unicode's own line ends are
    not shown.
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
    """The text of anything with an escape in the place of each character that a terminal would obey."""
    return "".join(part for part, _ in split_hidden(str(text)))


def well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which no file, tokenizer or server takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class PrintableRecord(logging.LogRecord):
    """A log record whose message and traceback are shown, never obeyed, whatever handler a library has for it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.exc_info:
            # Formatters take it where it is there.
            self.exc_text = printable("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        """The message with its arguments."""
        return printable(super().getMessage())


class PrintableStream(io.TextIOBase):
    """Hands text on to another stream; what it says is shown, never obeyed.

    Args:
        stream: Gets the text.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes all of it."""
        self.stream.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the other stream."""
        self.stream.flush()


def guard_terminal() -> None:
    """Let logs, warnings and uncaught exceptions reach standard error as printable text alone."""
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
