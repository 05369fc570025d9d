"""The dashboard as a page of this machine's browsers."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Sequence

HOST = "127.0.0.1"
"""Whoever reaches the page can read the run and stop it, so it is shown to this machine alone."""


def serve(paths: Sequence[str], follow: bool | None, port: int) -> int:
    """Serve until interrupted; each browser tab gets a dashboard of its own.

    Args:
        paths: Run stores.
        follow: As on the command line.
        port: Of the page.

    Returns:
        Exit code, 1 when the port is taken.
    """
    from textual_serve.server import Server

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            print(
                f"rwml-tui: port {port} cannot be used ({error.strerror}); name another with --port",
                file=sys.stderr,
            )
            return 1
    options = [] if follow is None else ["--follow" if follow else "--no-follow"]
    # exec: without a shell between them the dashboard sees when the server ends.
    command = "exec " + shlex.join([sys.executable, "-m", "rwml_tui", *paths, *options])
    Server(command, host=HOST, port=port, title="rwml-tui").serve()
    return 0
