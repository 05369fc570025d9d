"""Serving of the dashboard as a web page on this machine."""

from __future__ import annotations

import secrets
import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from rwml_lightning.printable import PrintableStream, guard_terminal, printable


def serve(paths: Sequence[str], follow: bool | None, port: int) -> int:
    """Serve the dashboard until interrupted; each browser tab gets a separate dashboard.

    The address with the token of this start is printed to standard output.

    Args:
        paths: Paths of the run stores.
        follow: Whether to check for new records. ``None`` does so if the run is alive.
        port: Port of the page.

    Returns:
        Exit code, which is 1 if the port cannot be used.
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
    # With exec there is no shell in between, so the dashboard notices when the server ends.
    command = "exec " + shlex.join([sys.executable, "-m", "rwml_tui", *paths, *options])
    page = Page(command, port, secrets.token_urlsafe(32))
    guard_terminal()
    print(printable(f"rwml-tui: {page.url}"))
    print("Anyone with this address can open the run. Ctrl+C ends the page.", flush=True)
    with redirect_stdout(PrintableStream(sys.stdout)):  # the server repeats the last output of a dashboard
        # No access log: it would hold the token and text from requests of strangers.
        web.run_app(page._make_app(), host=HOST, port=port, print=None, access_log=None, shutdown_timeout=5)
    return 0
