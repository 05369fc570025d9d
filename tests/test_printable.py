"""What others say reaches a terminal as text: no control sequence, no markup."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType
from rwml_callbacks.analysis import Analysis, Measurement

from rwml_lightning.cli import main
from rwml_lightning.data.collection import collection_table
from rwml_lightning.evaluation import (
    EpisodeResult,
    Result,
    render_by_kind,
    render_comparison,
    render_episodes,
    render_results,
)
from rwml_lightning.printable import printable, well_formed
from rwml_lightning.run import RunFolder
from rwml_lightning.schema import Completion, Group, Prediction, Score
from rwml_lightning.summary import print_summary
from rwml_lightning.terminal import Terminal
from rwml_lightning.trace import TraceWriter
from support.hostile import HOSTILE, assert_harmless
from support.worlds import make_transition

ROOT = Path(__file__).parents[1]
PACKAGES = ("rwml_lightning", "callbacks", "tui")
MARKUP = "[@click=app.quit]x[/] [bold]b"
RESULT = Result(HOSTILE, 2, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)


class _Named(Analysis):
    name = HOSTILE

    def measure(self, *_: object) -> Measurement:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold]text[/]\nsecond", "plain [bold]text[/]\nsecond"),
        ("\x1b[2J\x9b\x00\t\r\x7f", "\\x1b[2J\\x9b\\x00\\t\\r\\x7f"),
        ("\u202eabc\u2028\ufeff", "\\u202eabc\\u2028\\ufeff"),
        ("\ud800", "\\ud800"),
        ("שלום é 👩\u200d🔬", "שלום é 👩\u200d🔬"),
        ("", ""),
    ],
)
def test_control_characters_stand_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=50))
def test_any_text_is_harmless_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert_harmless(shown)
    assert printable(shown) == shown


@given(st.text(st.characters() | st.characters(categories=["Cs"])))
def test_well_formed_text_can_be_encoded_and_stays_what_it_is(text: str) -> None:
    assert well_formed(text).encode().decode() == well_formed(text)
    pieces = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert well_formed(text) == pieces  # two halves that belong together become one character


@given(st.text())
def test_what_is_well_formed_is_not_touched(text: str) -> None:
    assert well_formed(text) is text


@pytest.mark.parametrize(
    "table",
    [
        lambda: render_results(HOSTILE, [RESULT]),
        lambda: render_comparison(HOSTILE, {HOSTILE: RESULT}, {}, [RESULT]),
        lambda: render_by_kind(HOSTILE, {HOSTILE: [RESULT]}),
        lambda: render_episodes(HOSTILE, {HOSTILE: EpisodeResult(HOSTILE, 1, 1, {HOSTILE: 1.0})}),
        lambda: collection_table([make_transition(kind=HOSTILE, split=HOSTILE)], 1, 0),
        lambda: _Named().render(Measurement({f"x/{HOSTILE}": 1.0}, None)),
    ],
    ids=["results", "comparison", "by kind", "episodes", "collection", "analysis"],
)
def test_tables_show_names_and_obey_none(table: Callable[[], RenderableType]) -> None:
    terminal = Terminal(width=1000, record=True, force_terminal=False)
    terminal.print(table())
    shown = terminal.export_text()
    assert_harmless(shown)
    assert MARKUP in shown
    assert "example.org" in shown
    assert ":bomb:" in shown


def test_a_run_is_summed_up_whatever_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    folder = RunFolder(tmp_path / "\x1b]0;title\x07 [bold]")
    prediction = Prediction(
        Completion((1,), (0.0,), "stop", 0), HOSTILE, HOSTILE, HOSTILE, Score(1.0, 1.0, True), 0.0, 0
    )
    group = Group(
        make_transition(action=HOSTILE, next_state=HOSTILE, kind=HOSTILE), (1,), HOSTILE, (prediction,)
    )
    rows = [asdict(RESULT)]
    with TraceWriter(folder.trace) as writer:
        writer.write_evaluation("wm_grpo", 1, {"results": rows, "floors": rows}, [group])
    print_summary(folder)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert shown.count(MARKUP) >= 4  # names of rows, action, predicted, real
    assert "title\\x07 [bold]" in shown


@pytest.mark.heavy
def test_an_error_is_shown_not_obeyed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "\x1b]52;c;x\x07.yaml")])
    with pytest.raises(SystemExit):
        main(["weight_change", "--before", "b", "--after", f"{tmp_path}/\x1b]0;a\x07"])
    shown = capsys.readouterr().err
    assert_harmless(shown)
    assert shown.count("error: ") == 2
    assert "\\x1b]0;a\\x07" in shown


TALKATIVE = """
import logging, sys, warnings
from rwml_lightning.cli import quieten

quieten()
hostile = sys.argv[1] + chr(0x9b)
logging.getLogger("later").addHandler(logging.StreamHandler())
for name in ("rwml_lightning", "lightning.pytorch", "lightning.fabric", "transformers", "later"):
    log = logging.getLogger(name)
    log.error("%s says %s", name, hostile)
    try:
        raise ValueError(f"{name} raises {hostile}")
    except ValueError:
        log.exception("failed")
for file in ("file.py", "lightning/file.py"):  # Lightning has a format of its own for warnings of its files
    warnings.warn_explicit(f"{file} warns {hostile}", UserWarning, file, 1)
raise RuntimeError(f"it ends {hostile}")
"""


@pytest.mark.heavy
def test_logs_warnings_and_tracebacks_are_shown_not_obeyed() -> None:
    """Handlers of libraries are covered too, those that are made later among them."""
    command = [sys.executable, "-c", TALKATIVE, "\x1b]52;c;x\x07 \u202e"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stderr
    assert_harmless(shown)
    for name in ("rwml_lightning", "lightning.pytorch", "lightning.fabric", "transformers", "later"):
        assert f"{name} says \\x1b]52;c;x\\x07 \\u202e\\x9b\n" in shown
        assert f"ValueError: {name} raises \\x1b]52;c;x\\x07 \\u202e\\x9b\n" in shown
    for file in ("file.py", "lightning/file.py"):
        assert f"{file} warns \\x1b]52;c;x\\x07 \\u202e\\x9b\n" in shown
    assert "RuntimeError: it ends \\x1b]52;c;x\\x07 \\u202e\\x9b\n" in shown


def sources() -> Iterator[tuple[str, ast.AST]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = str(file.relative_to(ROOT))
            for node in ast.walk(ast.parse(file.read_text())):
                yield f"{name}:{getattr(node, 'lineno', 0)}", node


@pytest.mark.heavy
def test_there_is_one_console() -> None:
    """A console of rich's own would read markup in names, and hand their escape sequences to the terminal."""
    imports = [
        place
        for place, node in sources()
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("rich")
        and {alias.name for alias in node.names} & {"Console", "print", "escape"}
    ]
    assert [place.partition(":")[0] for place in imports] == ["rwml_lightning/terminal.py"]


@pytest.mark.heavy
def test_whatever_is_printed_is_made_printable() -> None:
    bare = [
        place
        for place, node in sources()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and not all(
            isinstance(given, ast.Constant)
            or (
                isinstance(given, ast.Call)
                and isinstance(given.func, ast.Name)
                and given.func.id == "printable"
            )
            for given in node.args
        )
    ]
    assert bare == []
