"""The dashboard as a page of this machine's browsers."""

from __future__ import annotations

import secrets
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from rwml_lightning.printable import PrintableStream, guard_terminal, printable


def serve(paths: Sequence[str], follow: bool | None, port: int) -> int:
    """Serve until interrupted; each browser tab gets a dashboard of its own.

    The address with this start's token goes to standard output.

    Args:
        paths: Run stores.
        follow: As on the command line.
        port: Port of the page.

    Returns:
        Exit code, 1 when the port is taken.
    """
    from aiohttp import web

    from rwml_tui.page import HOST, Page

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = f"port {port} cannot be used ({error.strerror}); name another with --port"
            print(printable(f"rwml-tui: {reason}"), file=sys.stderr)
            return 1
    options = [] if follow is None else ["--follow" if follow else "--no-follow"]
    # exec: without a shell between them the dashboard sees when the server ends.
    command = "exec " + shlex.join([sys.executable, "-m", "rwml_tui", *paths, *options])
    page = Page(command, port, secrets.token_urlsafe(32))
    guard_terminal()
    print(printable(f"rwml-tui: {page.url}"))
    print("The address opens the run to whoever has it. Ctrl+C ends the page.", flush=True)
    with redirect_stdout(
        PrintableStream(sys.stdout)
    ):  # the server repeats what a dashboard says before it ends
        # No log of requests: it would hold the token, and whatever a stranger's request says.
        web.run_app(page._make_app(), host=HOST, port=port, print=None, access_log=None, shutdown_timeout=5)
    return 0
