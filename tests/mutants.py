"""Which faults the tests would notice: ``make mutants``.

    python tests/mutants.py                                  # every package of PACKAGES
    python tests/mutants.py rwml_lightning.functional        # names of modules, functions or mutants; * and ? as in a shell
    MUTANTS_SECONDS=600 MUTANTS_JOBS=2 python tests/mutants.py

mutmut writes the mutants (a copy of the packages, in which every function has its variants beside it), names and keeps
them; ``cd build/mutants && mutmut show NAME`` shows one. They are run here: what takes long is importing torch and
collecting the tests, so that is done once, and each mutant is a fork of that process, which runs the tests that reach its
function, the package's own and the short ones first, up to the first that fails. No test runs in the process itself,
because torch allows no backward pass in the fork of a process that has had one.

Mutants are taken in a fixed random order, so a run that ends early is a random sample of each package. What is decided
stays decided until its function changes; survivors are tried again when a file of the tests has changed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutants"
SOURCES = {"rwml_lightning": "rwml_lightning", "rwml_callbacks": "callbacks/rwml_callbacks"}
TESTS = ("functional", "modules", "rewards", "data", "generation", "callbacks")
PACKAGES = (*(f"rwml_lightning.{name}" for name in TESTS[:-1]), "rwml_callbacks")
LEAST_KILLED = 0.9
MOST_SECONDS = 20.0
"""Seconds of tests that one mutant gets, by their time without it."""
KILLED, SURVIVED, NO_TESTS, TIMEOUT, CRASHED = 1, 0, 33, 36, 3  # mutmut's codes


def copy_changed(source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source`` that leaves files alone, and their times, where nothing changed."""
    wanted = {
        f.relative_to(source) for f in source.rglob("*") if f.is_file() and "__pycache__" not in f.parts
    }
    for file in wanted:
        there = target / file
        if not there.exists() or there.read_bytes() != (source / file).read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, there)
    for there in [f for f in target.rglob("*") if f.is_file() and f.relative_to(target) not in wanted]:
        there.unlink()


def write_mutants() -> None:
    """Copy packages and tests to the work folder, and let mutmut write the mutants of what changed."""
    from mutmut.__main__ import copy_src_dir, create_mutants

    for package, folder in SOURCES.items():
        copy_changed(ROOT / folder, WORK / "src" / package)
    for folder in TESTS:
        copy_changed(ROOT / "tests" / folder, WORK / "tests" / folder)
    for file in (ROOT / "tests").glob("*.py"):
        if not file.name.startswith("test_"):
            shutil.copyfile(file, WORK / "tests" / file.name)
    shutil.copyfile(ROOT / "pyproject.toml", WORK / "pyproject.toml")
    os.chdir(WORK)
    copy_src_dir()
    with open(os.devnull, "w") as nowhere:
        out, sys.stdout = sys.stdout, nowhere
        try:
            create_mutants(os.cpu_count() or 1)
        finally:
            sys.stdout = out


def files_of_mutants() -> Iterator[Any]:
    """What mutmut knows of the mutants of each file."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.utils.file_utils import walk_mutatable_files

    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        yield data


def package_of(mutant: str) -> str:
    return next(package for package in PACKAGES if mutant.startswith(package + "."))


def matches(mutant: str, names: Sequence[str]) -> bool:
    return not names or any(
        mutant.startswith(name + ".") or fnmatch.fnmatch(mutant, name + "*") for name in names
    )


def folders_of(names: Sequence[str]) -> list[str]:
    """Folders of the tests that a run needs: those of the packages named, or all."""
    named = [
        f"tests/{folder}"
        for folder, package in zip(TESTS, PACKAGES, strict=True)
        if any(name.startswith(package) for name in names)
    ]
    return named or [f"tests/{folder}" for folder in TESTS]


def fork(task: Callable[[], int]) -> int:
    """Run ``task`` in a silent child that leads a process group; its exit code is what the task returns."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    code = CRASHED
    try:
        code = task()
    finally:
        os._exit(code)


def run_tests(items: Sequence[Any], each: Callable[[Any, float, bool], bool]) -> None:
    """Run tests until ``each`` of (test, seconds, whether it passed) says no."""
    from _pytest.runner import runtestprotocol

    for item, following in zip_longest(items, items[1:]):
        start = time.perf_counter()
        reports = runtestprotocol(item, log=False, nextitem=following)
        if not each(item, time.perf_counter() - start, not any(r.failed for r in reports)):
            return


class Reach:
    """Which functions each test calls and how long it takes, kept in a file by the hash of the test's file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def measure(self, items: Sequence[Any]) -> bool:
        """Run the tests of files that changed without a mutant; gives whether there were any."""
        hashes = {item.path: hashlib.sha256(item.path.read_bytes()).hexdigest() for item in items}
        new = [i for i in items if self.known.get(i.nodeid, {}).get("hash") != hashes[i.path]]
        if new:
            print(f"Running {len(new)} tests without a mutant", flush=True)
            found = self.file.with_suffix(".new")
            pid = fork(lambda: self._run(new, found))
            os.waitpid(pid, 0)
            lines = [json.loads(line) for line in found.read_text().splitlines()]
            found.unlink()
            self.known |= {line.pop("test"): line for line in lines}
            for item in new:
                if item.nodeid in self.known:
                    self.known[item.nodeid]["hash"] = hashes[item.path]
        here = {item.nodeid for item in items}
        files = {item.nodeid.partition("::")[0] for item in items}
        self.known = {  # forget tests that their file has no more
            test: one
            for test, one in self.known.items()
            if test in here or test.partition("::")[0] not in files
        }
        self.file.write_text(json.dumps(self.known))
        failed = [test for test, one in self.known.items() if not one["passed"]]
        if failed or here - self.known.keys():
            lost = failed + sorted(here - self.known.keys())
            raise SystemExit(f"{len(lost)} tests fail without a mutant, for example {lost[0]}")
        return bool(new)

    def _run(self, items: Sequence[Any], found: Path) -> int:
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state

        set_mutant_under_test("stats")
        with found.open("w") as file:

            def each(item: Any, seconds: float, passed: bool) -> bool:
                functions = sorted(state()._stats)
                state()._stats.clear()
                line = {"test": item.nodeid, "seconds": seconds, "passed": passed, "functions": functions}
                print(json.dumps(line), file=file, flush=True)
                return True

            run_tests(items, each)
        self.file.with_suffix(".imports").write_text("\n".join(sorted(sys.modules)))
        return 0

    def import_what_tests_import(self) -> None:
        """Import here what tests import as they run, so that the forks need not."""
        for module in self.file.with_suffix(".imports").read_text().split():
            with contextlib.suppress(ImportError):  # some names are no modules
                importlib.import_module(module)

    def tests_by_function(self, tests_here: Iterable[str]) -> dict[str, list[str]]:
        """Tests that call each function: the package's own first, then the shortest, up to ``MOST_SECONDS``."""
        reached = defaultdict(list)
        for test in tests_here:
            for function in self.known[test]["functions"]:
                reached[function].append(test)
        for function, tests in reached.items():
            own = f"tests/{function.removeprefix('rwml_lightning.').removeprefix('rwml_').split('.')[0]}/"
            tests.sort(key=lambda test: (not test.startswith(own), self.known[test]["seconds"]))
            total, kept = 0.0, 0
            while kept < len(tests) and total < MOST_SECONDS:
                total += self.known[tests[kept]]["seconds"]
                kept += 1
            del tests[kept:]
        return reached


class MutationRun:
    """A pytest plugin that runs mutants in place of the tests."""

    def __init__(self, names: Sequence[str], seconds: float, jobs: int) -> None:
        self.names = names
        self.end = time.monotonic() + seconds
        self.jobs = jobs

    def pytest_runtestloop(self, session: Any) -> bool:
        from mutmut.utils.format_utils import mangled_name_from_mutant_name

        session.config._tmp_path_factory.getbasetemp()  # one for all forks
        os.environ["RWML_TINY_MODEL"] = str(WORK / "model")
        os.waitpid(fork(self._write_model), 0)
        items = {item.nodeid: item for item in session.items}
        reach = Reach(WORK / "reach.json")
        changed = reach.measure(session.items)
        reach.import_what_tests_import()
        tests = reach.tests_by_function(items)
        open_again = (None, SURVIVED, NO_TESTS) if changed else (None,)
        queue = [
            (data, mutant)
            for data in files_of_mutants()
            for mutant, code in data.exit_code_by_key.items()
            if code in open_again and matches(mutant, self.names)
        ]
        queue = [(data, mutant) for data, mutant in queue if self._is_reached(data, mutant, tests)]
        queue.sort(key=lambda one: hashlib.sha256(one[1].encode()).digest())
        gc.freeze()  # a collection in a fork would copy what it shares with this process
        total, shown = len(queue), time.monotonic()
        running: dict[int, tuple[Any, str, float, float]] = {}
        while (queue and time.monotonic() < self.end) or running:
            while queue and len(running) < self.jobs and time.monotonic() < self.end:
                data, mutant = queue.pop()
                chosen = [items[test] for test in tests[mangled_name_from_mutant_name(mutant)]]
                expected = sum(reach.known[item.nodeid]["seconds"] for item in chosen)
                pid = fork(lambda chosen=chosen, mutant=mutant: self._try(mutant, chosen))  # type: ignore[misc]
                running[pid] = (data, mutant, time.monotonic(), time.monotonic() + 20 + 5 * expected)
            self._collect(running)
            if time.monotonic() > shown + 30:
                shown = time.monotonic()
                print(f"{total - len(queue)} of {total} mutants tried", flush=True)
        return True

    @staticmethod
    def _write_model() -> int:
        from rwml_testing import write_taught_model

        write_taught_model(WORK / "model")
        return 0

    @staticmethod
    def _is_reached(data: Any, mutant: str, tests: dict[str, list[str]]) -> bool:
        from mutmut.utils.format_utils import mangled_name_from_mutant_name

        if tests.get(mangled_name_from_mutant_name(mutant)):
            return True
        data.exit_code_by_key[mutant] = NO_TESTS
        data.save()
        return False

    @staticmethod
    def _try(mutant: str, items: Sequence[Any]) -> int:
        from mutmut.mutation.trampoline import set_mutant_under_test

        set_mutant_under_test(mutant)
        code = SURVIVED

        def each(item: Any, seconds: float, passed: bool) -> bool:
            nonlocal code
            code = SURVIVED if passed else KILLED
            return passed

        run_tests(items, each)
        return code

    @staticmethod
    def _collect(running: dict[int, tuple[Any, str, float, float]]) -> None:
        """Note the results of forks that ended, and end those that are late."""
        for pid, (data, mutant, start, deadline) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = not ended and time.monotonic() > deadline
            if not ended and not late:
                continue
            if late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            code = TIMEOUT if late else os.WEXITSTATUS(status) if os.WIFEXITED(status) else CRASHED
            data.exit_code_by_key[mutant] = code
            data.durations_by_key[mutant] = time.monotonic() - start
            data.save()
            del running[pid]
        time.sleep(0.005)


def report(names: Sequence[str]) -> int:
    """Print the table, write the survivors' names; 1 if a package's share is too low."""
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
                counts[package_of(mutant)][states.get(code, "not run")] += 1
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
    os.environ["PYTHONPATH"] = sys.path[0]  # for processes that the tests start

    import pytest
    from hypothesis import Phase, settings

    # The same examples for every mutant, no search for a smaller one, and no verdict that depends on the machine's load.
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
        names, float(os.environ.get("MUTANTS_SECONDS", "inf")), int(os.environ.get("MUTANTS_JOBS", "1"))
    )
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "-s",
            "-q",
            "-m",
            "not slow",
            "--tb=native",
            "-p",
            "no:cacheprovider",
            f"--basetemp={folder}/tests",
        ]
        options += ["-o", "tmp_path_retention_policy=none", "--rootdir", str(WORK)]
        code = pytest.main([*options, *folders_of(names)], plugins=[plugin])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return int(code)
    return report(names)


if __name__ == "__main__":
    raise SystemExit(main())
