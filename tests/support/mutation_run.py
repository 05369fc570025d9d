"""A pytest plugin that runs mutants in place of tests; see ``mutants.py``.

Imports of torch and the collection of tests take long, so the plugin does them once. Each mutant runs in a fork of that
process. It runs the tests that call the mutated function, those of its own package first, until one fails. No test runs
in the process itself, because torch allows no backward pass in a fork of a process that has run one.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import gc
import hashlib
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

MOST_SECONDS = 30.0
"""CPU seconds of tests for one mutant, by their times without it."""
KILLED, SURVIVED, NO_TESTS, TIMEOUT, CRASHED = 1, 0, 33, 36, 3  # mutmut's codes


def files_of_mutants() -> Iterator[Any]:
    """Yield mutmut's data on the mutants of each file."""
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.utils.file_utils import walk_mutatable_files

    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        yield data


def matches(mutant: str, names: Sequence[str]) -> bool:
    return not names or any(
        mutant.startswith(name + ".") or fnmatch.fnmatch(mutant, name + "*") for name in names
    )


def package_of(mutant: str, packages: Iterable[str]) -> str:
    return next(package for package in packages if mutant.startswith(package + "."))


def by_turns(mutants: Iterable[str], packages: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    """Return sort keys of a random order that is the same in every run and takes one mutant of each package in turn."""
    hashes = {mutant: hashlib.sha256(mutant.encode()).digest() for mutant in mutants}
    taken: Counter[str] = Counter()
    keys = {}
    for mutant in sorted(hashes, key=hashes.__getitem__):
        package = package_of(mutant, packages)
        keys[mutant] = (taken[package], hashes[mutant])
        taken[package] += 1
    return keys


def fork(task: Callable[[], int]) -> int:
    """Run ``task`` in a silent child process with its own process group. The result of the task is the exit code."""
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
    """Run tests until ``each``, called with (test, seconds, whether it passed), returns false."""
    from _pytest.runner import runtestprotocol

    for item, following in zip_longest(items, items[1:]):
        start = time.process_time()
        reports = runtestprotocol(item, log=False, nextitem=following)
        if not each(item, time.process_time() - start, not any(r.failed for r in reports)):
            return


class Reach:
    """Functions and seconds of each test, stored in a file with a hash of the test's file and the packages."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def measure(self, items: Sequence[Any]) -> bool:
        """Run the changed tests without a mutant; return whether there were any."""
        packages = b"".join(file.read_bytes() for file in sorted(Path("src").rglob("*.py")))
        hashes = {item.path: hashlib.sha256(item.path.read_bytes() + packages).hexdigest() for item in items}
        sure = {test for test, one in self.known.items() if one["passed"]}
        new = [i for i in items if i.nodeid not in sure or self.known[i.nodeid]["hash"] != hashes[i.path]]
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
        self.known = {  # drop tests that are no longer in their file
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
        del os.environ["MUTANT_UNDER_TEST"]  # processes that tests start cannot record their calls
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
        """Import the modules that tests import while they run, so that the forks need not do it."""
        for module in self.file.with_suffix(".imports").read_text().split():
            with contextlib.suppress(ImportError):  # some names are not modules
                importlib.import_module(module)

    def tests_by_function(self, tests_here: Iterable[str]) -> dict[str, list[str]]:
        """Select tests that call each function, up to ``MOST_SECONDS``.

        Tests of the function's own package come first, then the first case of each test, then short tests.
        """
        reached = defaultdict(list)
        for test in tests_here:
            for function in self.known[test]["functions"]:
                reached[function].append(test)
        for function, tests in reached.items():
            package = function.removeprefix("rwml_lightning.").removeprefix("rwml_").split(".")[0]
            own = (f"tests/{package}/", f"tests/test_{package}.py")
            tests.sort(key=lambda test: self.known[test]["seconds"])
            cases: Counter[str] = Counter()
            place = {}
            for test in tests:
                name = test.partition("[")[0]
                place[test] = cases[name]
                cases[name] += 1
            tests.sort(key=lambda test, place=place, own=own: (not test.startswith(own), place[test]))  # type: ignore[misc]
            total, kept = 0.0, 0
            while kept < len(tests) and total < MOST_SECONDS:
                total += self.known[tests[kept]]["seconds"]
                kept += 1
            del tests[kept:]
        return reached


class MutationRun:
    """Run mutants in place of the tests, as a pytest plugin."""

    def __init__(
        self, work: Path, packages: Sequence[str], names: Sequence[str], seconds: float, jobs: int
    ) -> None:
        self.work = work
        self.packages = packages
        self.names = names
        self.seconds = seconds
        self.jobs = jobs

    def pytest_runtestloop(self, session: Any) -> bool:
        from mutmut.utils.format_utils import mangled_name_from_mutant_name

        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} files of tests cannot be collected")
        session.config._tmp_path_factory.getbasetemp()  # the same folder for all forks
        os.environ["RWML_TINY_MODEL"] = str(self.work / "model")
        os.waitpid(fork(self._write_model), 0)
        items = {item.nodeid: item for item in session.items}
        reach = Reach(self.work / "reach.json")
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
        order = by_turns((mutant for _, mutant in queue), self.packages)
        queue.sort(key=lambda one: order[one[1]], reverse=True)
        gc.freeze()  # a garbage collection in a fork would copy memory that it shares with this process
        total, shown = len(queue), time.monotonic()
        end = shown + self.seconds
        running: dict[int, tuple[Any, str, float, float]] = {}
        while (queue and time.monotonic() < end) or running:
            while queue and len(running) < self.jobs and time.monotonic() < end:
                data, mutant = queue.pop()
                chosen = [items[test] for test in tests[mangled_name_from_mutant_name(mutant)]]
                expected = sum(reach.known[item.nodeid]["seconds"] for item in chosen)
                limit = 10 + math.ceil(5 * expected)
                pid = fork(functools.partial(self._try, mutant, chosen, limit))
                running[pid] = (data, mutant, time.monotonic(), time.monotonic() + 20 * limit)
            self._collect(running)
            if time.monotonic() > shown + 30:
                shown = time.monotonic()
                print(f"{total - len(queue)} of {total} mutants tried", flush=True)
        return True

    def _write_model(self) -> int:
        from support.models import write_taught_model

        write_taught_model(self.work / "model")
        return 0

    @staticmethod
    def _is_reached(data: Any, mutant: str, tests: dict[str, list[str]]) -> bool:
        from mutmut.utils.format_utils import mangled_name_from_mutant_name

        if tests.get(mangled_name_from_mutant_name(mutant)):
            if data.exit_code_by_key[mutant] == NO_TESTS:  # a test calls it now
                data.exit_code_by_key[mutant] = None
            return True
        data.exit_code_by_key[mutant] = NO_TESTS
        data.save()
        return False

    @staticmethod
    def _try(mutant: str, items: Sequence[Any], limit: int) -> int:
        from mutmut.mutation.trampoline import set_mutant_under_test

        resource.setrlimit(
            resource.RLIMIT_CPU, (limit, limit + 1)
        )  # CPU seconds do not depend on the load of the machine
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
        """Record the results of finished forks, and kill those that exceed their time limit."""
        for pid, (data, mutant, start, deadline) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            late = not ended and time.monotonic() > deadline
            if not ended and not late:
                continue
            if late:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
                code = TIMEOUT
            else:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else CRASHED
            data.exit_code_by_key[mutant] = code
            data.durations_by_key[mutant] = time.monotonic() - start
            data.save()
            del running[pid]
        time.sleep(0.005)
