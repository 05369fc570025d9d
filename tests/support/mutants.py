"""Mutation tests, which show the faults that the tests detect: ``make mutants``.

    python tests/support/mutants.py                              # every package of TESTS
    python tests/support/mutants.py rwml_lightning.functional    # names of modules, functions or mutants; * and ? as in a shell
    MUTANTS_SECONDS=600 MUTANTS_JOBS=2 python tests/support/mutants.py

mutmut writes, names and stores the mutants, in a copy of the packages where every function is followed by its variants.
``cd build/mutants && mutmut show NAME`` shows one. :mod:`mutation_run` runs them. mutmut does not mutate functions with a
decorator, so in the copy a decorator is a call in the statement after its function.

Mutants run in a fixed random order, one of each package in turn, so a run that ends early is a random sample of each
package. A result stays valid until its function changes. Survivors run again when a file of the tests has changed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from mutation_run import (  # not support.mutation_run: the copied tests have their own package `support`
    CRASHED,
    KILLED,
    NO_TESTS,
    SURVIVED,
    TIMEOUT,
    MutationRun,
    files_of_mutants,
    matches,
    package_of,
)

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutants"
SOURCES = {"rwml_lightning": "rwml_lightning", "rwml_callbacks": "callbacks/rwml_callbacks"}
TESTS = {
    "rwml_lightning.functional": "functional",
    "rwml_lightning.modules": "modules",
    "rwml_lightning.rewards": "rewards",
    "rwml_lightning.data": "data",
    "rwml_lightning.episodes": "episodes",
    "rwml_lightning.prompts": "prompts",
    "rwml_lightning.generation": "generation",
    "rwml_lightning.weights": "test_weights.py",
    "rwml_callbacks": "callbacks",
}
"""Tests of each mutated package or module."""
LEAST_KILLED = 0.9


class CallDecorators(cst.CSTTransformer):
    """Rewrite ``@a def f(): ...`` as ``def f(): ...`` and ``f = a(f)``."""

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.FlattenSentinel[cst.BaseStatement]:
        if any(
            m.matches(d.decorator, m.Name("staticmethod") | m.Name("classmethod"))  # mutmut handles these
            for d in updated_node.decorators
        ):
            return updated_node
        calls = []
        for decorator in reversed(updated_node.decorators):
            call = cst.Call(decorator.decorator, [cst.Arg(updated_node.name)])
            assignment = cst.Assign([cst.AssignTarget(updated_node.name)], call)
            calls.append(cst.SimpleStatementLine([assignment]))
        return cst.FlattenSentinel([updated_node.with_changes(decorators=()), *calls])


def call_decorators(content: bytes) -> bytes:
    """Rewrite a Python file without decorators of functions."""
    return cst.parse_module(content).visit(CallDecorators()).bytes


def copy_changed(
    source: Path, target: Path, convert: Callable[[bytes], bytes] = lambda content: content
) -> None:
    """Make ``target`` a copy of ``source``, and do not write unchanged files, so that they keep their times.

    Args:
        source: Folder to copy.
        target: Folder of the copy.
        convert: Function that converts the content of a Python file.
    """
    wanted = {
        f.relative_to(source) for f in source.rglob("*") if f.is_file() and "__pycache__" not in f.parts
    }
    for file in wanted:
        content = (source / file).read_bytes()
        if file.suffix == ".py":
            content = convert(content)
        there = target / file
        if not there.exists() or there.read_bytes() != content:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(content)
    for there in [f for f in target.rglob("*") if f.is_file() and f.relative_to(target) not in wanted]:
        there.unlink()


def write_mutants() -> None:
    """Copy packages and tests to the work folder, and let mutmut write the mutants of changed functions."""
    from mutmut.__main__ import copy_src_dir, create_mutants

    complete = WORK / "complete"  # if it is missing, some copies may have no mutants yet
    settings, known = ROOT / "pyproject.toml", WORK / "pyproject.toml"
    if (
        not complete.exists() or known.read_bytes() != settings.read_bytes()
    ):  # other files may be selected now
        for file in (WORK / "mutants").rglob("*.py"):
            file.unlink()
    complete.unlink(missing_ok=True)
    shutil.copyfile(settings, known)
    for package, folder in SOURCES.items():
        copy_changed(ROOT / folder, WORK / "src" / package, call_decorators)
    folders = {name for name in TESTS.values() if (ROOT / "tests" / name).is_dir()}
    for name in (*folders, "support"):
        copy_changed(ROOT / "tests" / name, WORK / "tests" / name)
    files = {"conftest.py", *TESTS.values()} - folders
    for name in files:
        shutil.copyfile(ROOT / "tests" / name, WORK / "tests" / name)
    for file in (WORK / "tests").glob("*.py"):
        if file.name not in files:  # from an earlier state of the tests
            file.unlink()
    os.chdir(WORK)
    copy_src_dir()
    for file in Path("src").rglob("*"):  # mutmut copies data files only once
        if file.is_file() and file.suffix != ".py":
            shutil.copyfile(file, "mutants" / file)
    with open(os.devnull, "w") as nowhere:
        out, sys.stdout = sys.stdout, nowhere
        try:
            create_mutants(os.cpu_count() or 1)
        finally:
            sys.stdout = out
    complete.touch()


def tests_of(names: Sequence[str]) -> list[str]:
    """Return the tests of a run: those of the named packages, or all."""
    named = [
        f"tests/{tests}"
        for package, tests in TESTS.items()
        if any(name.startswith(package) for name in names)
    ]
    return named or [f"tests/{tests}" for tests in TESTS.values()]


def report(names: Sequence[str]) -> int:
    """Print the table and write the names of survivors; return 1 if the share of a package is too low, else 0."""
    from rich.console import Console
    from rich.table import Table

    states = {
        KILLED: "killed",
        CRASHED: "killed",
        SURVIVED: "survived",
        NO_TESTS: "no tests",
        TIMEOUT: "timeout",
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for data in files_of_mutants():
        for mutant, code in data.exit_code_by_key.items():
            if matches(mutant, names):
                counts[package_of(mutant, TESTS)][states.get(code, "not run")] += 1
                if code in (SURVIVED, NO_TESTS):
                    survivors.append(f"{states[code]}: {mutant}")
    (WORK / "survivors.txt").write_text("\n".join(sorted(survivors)) + "\n")
    table = Table(caption=f"Survivors by name: {(WORK / 'survivors.txt').relative_to(ROOT)}")
    columns = ("mutants", "killed", "timeout", "survived", "no tests", "not run")
    for column in ("package", *columns, "share killed"):
        table.add_column(column, justify="left" if column == "package" else "right")
    shares = []
    for package, count in counts.items():
        tried = count.total() - count["not run"]
        share = (count["killed"] + count["timeout"]) / tried if tried else 0.0
        shares.append(share)
        numbers = [str(count.total()), *(str(count[column]) for column in columns[1:])]
        table.add_row(package, *numbers, f"{share:.1%}" if tried else "-")
    Console(width=110).print(table)
    return int(min(shares, default=0.0) < LEAST_KILLED)


def main() -> int:
    names = sys.argv[1:]
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ.update(TOKENIZERS_PARALLELISM="false", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    write_mutants()
    sys.path[:0] = [str(WORK / "mutants" / "src")]

    import pytest
    from hypothesis import Phase, settings

    # Same examples for every mutant, no shrinking, and no result that depends on the load of the machine.
    settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        database=None,
        max_examples=30,
        phases=(Phase.explicit, Phase.generate),
    )
    settings.load_profile("mutants")
    plugin = MutationRun(
        WORK,
        packages=list(TESTS),
        names=names,
        seconds=float(os.environ.get("MUTANTS_SECONDS", "inf")),
        jobs=int(os.environ.get("MUTANTS_JOBS", "1")),
    )
    with tempfile.TemporaryDirectory() as folder:
        options = ["-s", "-q", "--tb=native", "-p", "no:cacheprovider", "-m", "not slow", f"--rootdir={WORK}"]
        options += [f"--basetemp={folder}/tests", "-o", "tmp_path_retention_policy=none"]
        code = pytest.main([*options, *tests_of(names)], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(code)
    return report(names)


if __name__ == "__main__":
    raise SystemExit(main())
