"""``rwml-tui [RUN ...]``: show predicted and real next states of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rwml_lightning.printable import printable
from rwml_lightning.trace import TraceError, TraceReader, trace_path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the dashboard and return the exit code, which is 1 when no run can be read."""
    parser = argparse.ArgumentParser(
        prog="rwml-tui", description="Show predicted and real next states of a run, or compare several runs."
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folder or its trace.db (default: the newest run under runs/)",
    )
    parser.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="check for new records every two seconds (default: if the run is alive)",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="serve the dashboard as a web page that only this machine can open",
    )
    parser.add_argument("--port", type=int, default=8000, help="port of the page (default: 8000)")
    chosen = parser.parse_args(arguments)
    with ExitStack() as stack:
        try:
            paths = [trace_path(run) for run in chosen.runs or (None,)]
            readers = {name: stack.enter_context(TraceReader(path)) for name, path in named(paths).items()}
            follow = next(iter(readers.values())).run().alive if chosen.follow is None else chosen.follow
        except TraceError as error:
            print(printable(f"rwml-tui: {error}"), file=sys.stderr)
            return 1
        if chosen.serve:
            from rwml_tui.serve import serve

            return serve([str(path.resolve()) for path in paths], chosen.follow, chosen.port)
        from rwml_tui.app import Dashboard  # late: errors above need no Textual

        app = Dashboard(readers, follow)
        app.run()
    return app.return_code or 0


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Map folder names to run stores; runs with equal folder names get their whole path as name."""
    names = [path.resolve().parent.name for path in paths]
    return {
        name if names.count(name) == 1 else str(path.parent): path
        for name, path in zip(names, paths, strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
