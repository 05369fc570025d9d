"""``rwml-tui [RUN]``: watch predicted and real next states."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rwml_lightning.trace import TraceError, TraceReader, trace_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the dashboard; returns the exit code, 1 when there is nothing to show."""
    parser = argparse.ArgumentParser(
        prog="rwml-tui", description="Watch predicted and real next states of a run."
    )
    parser.add_argument(
        "run", nargs="?", help="run folder or its trace.db; the newest under runs/ when left out"
    )
    parser.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="look for new records every two seconds (default: while the run is alive)",
    )
    chosen = parser.parse_args(arguments)
    try:
        reader = TraceReader(trace_path(chosen.run))
    except TraceError as error:
        print(f"rwml-tui: {error}", file=sys.stderr)
        return 1
    from rwml_tui.app import Dashboard  # after the checks: their answer need not wait for Textual

    with reader:
        app = Dashboard(reader, chosen.follow)
        app.run()
    return app.return_code or 0


if __name__ == "__main__":
    sys.exit(main())
