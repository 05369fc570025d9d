"""A program in a pseudo-terminal, and the times until it writes given texts."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

KEYS = {"down": "\x1b[B", "home": "\x1b[H", "enter": "\r", "ctrl+u": "\x15"}
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?<>=]*[a-zA-Z]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])")
_TYPING_SECONDS = 0.05


class Terminal:
    """Run a command in a pseudo-terminal; as a context manager, kill it at the end.

    Args:
        command: Program and arguments.
        size: Columns and rows.
        seconds: Longest wait for a text.
    """

    def __init__(
        self, command: Sequence[str], size: tuple[int, int] = (160, 48), seconds: float = 60.0
    ) -> None:
        self.seconds = seconds
        self._written = b""
        self._start = time.perf_counter()
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execvp(command[0], list(command))
        columns, rows = size
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        os.close(self._terminal)

    def wait_for(self, text: str) -> float:
        """Wait for a text; return the seconds from the last key, or from the start, until the program has written it.

        Raises:
            TimeoutError: The program did not write it. The message has the end of its output.
        """
        wanted = text.encode()
        while (left := self._start + self.seconds - time.perf_counter()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                try:
                    self._written += os.read(self._terminal, 1 << 16)
                except OSError:  # the program has ended
                    break
                if wanted in _ESCAPES.sub(b"", self._written):
                    return time.perf_counter() - self._start
        tail = _ESCAPES.sub(b"", self._written)[-2000:].decode("utf-8", "replace")
        raise TimeoutError(f"{text!r} was not written in {self.seconds:g} s; the end of the output: {tail}")

    def send(self, key: str, answer: str | None) -> float:
        """Press a key, wait for a text unless ``answer`` is ``None``, and return the seconds between."""
        self._read_rest()
        self._written = b""
        self._start = time.perf_counter()
        os.write(self._terminal, KEYS.get(key, key).encode())
        return 0.0 if answer is None else self.wait_for(answer)

    def type(self, text: str) -> None:
        """Press the keys of a text, one every 0.05 s."""
        for character in text:
            self.send(character, None)
            time.sleep(_TYPING_SECONDS)

    @property
    def peak_mb(self) -> float:
        """Largest resident memory so far, in MB (10^6 bytes)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 / 1e6

    @property
    def cpu_seconds(self) -> float:
        """Processor seconds of all threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _read_rest(self) -> None:
        while select.select([self._terminal], [], [], 0)[0]:
            os.read(self._terminal, 1 << 16)
