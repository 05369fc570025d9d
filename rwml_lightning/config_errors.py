"""Config errors for people: one line that names the key as the user wrote it, and the nearest name that exists."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from rapidfuzz import process
from typing_extensions import override

from rwml_lightning.printable import printable

_KEY_OR_CLASS = re.compile(
    r'Parser key "(?P<key>[^"]+)"|Problem with given class_path \'(?P<class_path>[^\']+)\''
)
_UNKNOWN_KEY = re.compile(r"does not accept option '([^']+)'|unrecognized arguments: --([\w.]+)")
_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_NO_SUCH_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_SUCH_PATH = re.compile(r"Expected a dot import path string: (.+)")
_REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
_UNION = re.compile(r"Does not validate against any of the Union subtypes\n.*\nErrors:\n  - (.+)")
_WRONG_TYPE = re.compile(r"Expected an? (.+?)\.? Got value: (.*)")


class ReadableParser(LightningArgumentParser):
    """Lightning's parser; a mistake ends in one line and exit code 2, before anything is loaded."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)  # of a part: raises, and the whole is explained further out
        print(printable(f"error: {explain(message, known_keys(self))}"), file=sys.stderr)
        raise SystemExit(2) from ex


def explain(message: str, keys: Iterable[str]) -> str:
    """One line for one of jsonargparse's messages.

    Args:
        message: As jsonargparse words it, over several lines.
        keys: Every key that the command knows.
    """
    if found := _UNKNOWN_KEY.search(message):
        name = found.group(1) or found.group(2)
        return f"{name} is no known key{_nearest(name, keys)}"
    path, class_path = _path(message)
    if found := _UNKNOWN_OPTION.search(message):
        return f"{_join(path, class_path, found.group(1))} is no known key{_nearest(found.group(1), _options(class_path))}"
    if found := _NO_SUCH_CLASS.search(message):
        module, name = found.groups()
        return f"{path}: {module} has no {name}{_nearest(name, dir(importlib.import_module(module)))}"
    if found := _REQUIRED.search(message):
        return f"{_join(path, class_path, found.group(1))} is missing"
    if found := _WRONG_TYPE.search(message):
        expected, value = found.groups()
        return f"{path} is {value!r}, but takes {_type_name(expected)}"
    if found := _NO_SUCH_PATH.search(message):
        return f"{path} is {found.group(1)!r}, but takes a class path such as rwml_lightning.modules.WorldModelGRPO"
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    return re.sub(r'^Parser key "([^"]+)": ', r"\1: ", text)


def reason(error: Exception) -> str:
    """What a constructor said, where jsonargparse wraps it in a list of all types that its key takes."""
    found = _UNION.match(str(error))
    return found.group(1) if found else str(error)


def known_keys(parser: Any) -> set[str]:
    """Keys of a parser and of its subcommands, as the user writes them."""
    keys: set[str] = set()
    for action in parser._actions:
        keys.add(action.dest)
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                keys |= known_keys(subparser)
    return keys


def _path(message: str) -> tuple[str, str | None]:
    """The key that the innermost part of a message speaks of, and the class that it is an argument of."""
    path, class_path = "", None
    for found in _KEY_OR_CLASS.finditer(message):
        if found["class_path"]:
            class_path = found["class_path"]
        else:
            path, class_path = _join(path, class_path, found["key"]), None
    return path, class_path


def _join(path: str, class_path: str | None, key: str) -> str:
    """``key`` below ``path``: under ``init_args`` when a class is named there, directly for a dataclass."""
    if not path:
        return key
    loaded = _load(class_path)
    through_init_args = class_path is not None and not dataclasses.is_dataclass(loaded)
    return f"{path}.init_args.{key}" if through_init_args else f"{path}.{key}"


def _load(class_path: str | None) -> Any:
    if class_path is None:
        return None
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _options(class_path: str | None) -> list[str]:
    """Arguments of a class and of those it inherits from."""
    loaded = _load(class_path)
    signatures = [
        inspect.signature(base) for base in getattr(loaded, "__mro__", ()) if "__init__" in vars(base)
    ]
    return [
        p.name for signature in signatures for p in signature.parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]  # fmt: skip


def _nearest(name: str, names: Iterable[str]) -> str:
    found = process.extractOne(name, [n for n in names if not n.startswith("_")], score_cutoff=60)
    return f"; did you mean {found[0]}?" if found else ""


def _type_name(expected: str) -> str:
    if literal := re.match(r"typing\.Literal\[(.*)\]", expected):
        return f"one of {literal.group(1)}"
    return re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", expected)
