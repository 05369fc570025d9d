"""Config errors in one line, which names the key as the user wrote it and the most similar existing key."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from typing import Any, NoReturn, get_args, get_type_hints

from lightning.pytorch.cli import LightningArgumentParser
from rapidfuzz import fuzz, process
from typing_extensions import override

from rwml_lightning.printable import printable

_KEY_OR_CLASS = re.compile(
    r'Parser key "(?P<key>[^"]+)"|Problem with given class_path \'(?P<class_path>[^\']+)\''
)
_UNKNOWN_KEY = re.compile(
    r"(?:Group '([^']+)' )?does not accept option '([^']+)'|unrecognized arguments: --([\w.]+)"
)
_UNKNOWN_OPTION = re.compile(r"Option '([^']+)' is not accepted")
_NO_SUCH_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_SUCH_PATH = re.compile(r"Expected a dot import path string: (.+)")
_WRONG_KIND = re.compile(
    r"Import path (\S+) does not (?:implement protocol|correspond to a subclass of) (\w+)"
)
_REQUIRED = re.compile(r"the following arguments are required: ([\w., ]+)")
_UNION = re.compile(r"Does not validate against any of the Union subtypes\n.*\nErrors:\n  - (.+)")
_WRONG_TYPE = re.compile(r"Expected an? (.+?)\.? Got value: (.*)")


class ReadableParser(LightningArgumentParser):
    """Lightning's parser. An error of the user ends in one line and exit code 2, before anything is loaded."""

    @override
    def parse_args(self, args: Any = None, *others: Any, **more: Any) -> Any:
        parsed = super().parse_args(args, *others, **more)
        # jsonargparse ignores an unknown option in a nested group if the parent group may be null.
        given = (sys.argv[1:] if args is None else args) if isinstance(args, list | None) else []
        unknown = unknown_options(given, known_keys(self))
        if unknown:
            self.error(f"unrecognized arguments: --{unknown[0]}")
        return parsed

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)  # a nested parser raises, and the outer parser explains the error
        print(printable(f"error: {explain(message, known_keys(self))}"), file=sys.stderr)
        raise SystemExit(2) from ex


def explain(message: str, keys: Collection[str]) -> str:
    """Convert an error message of jsonargparse to one line.

    Args:
        message: Message of jsonargparse, with several lines.
        keys: All keys of the command.
    """
    path, class_path = _path(message)
    if found := _UNKNOWN_KEY.search(message):
        group, *names = found.groups()
        key = ".".join(part for part in (group if path else "", *names) if part)
        name = _join(path, class_path, key)
        class_keys = _class_keys(class_path, _join(path, class_path, "")[:-1])
        return f"{name} is not a known key{_deeper(name, keys) or _nearest(name, class_keys or keys)}"
    if found := _UNKNOWN_OPTION.search(message):
        return f"{_join(path, class_path, found.group(1))} is not a known key{_nearest(found.group(1), _options(class_path))}"
    if found := _NO_SUCH_CLASS.search(message):
        module, name = found.groups()
        return f"{path}: {module} has no {name}{_nearest(name, dir(importlib.import_module(module)))}"
    if path and (found := _WRONG_KIND.search(message)):
        return f"{path} is {found.group(1)!r}, which is not a {found.group(2)}"
    if found := _REQUIRED.search(message):
        return f"{_join(path, class_path, found.group(1))} is missing"
    if found := _WRONG_TYPE.search(message):
        expected, value = found.groups()
        return f"{path} is {value!r}, but takes {_type_name(expected)}"
    if found := _NO_SUCH_PATH.search(message):
        return f"{path} is {found.group(1)!r}, but takes a class path such as rwml_lightning.modules.WorldModelGRPO"
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())
    return re.sub(r'^Parser key "([^"]+)": ', r"\1: ", text)


def unknown_options(arguments: Iterable[str], keys: Set[str]) -> list[str]:
    """Return the options of a command line that are unknown, although their group has known keys.

    The keys of classes and dicts are not known here, so their options are not checked.

    Args:
        arguments: The command line.
        keys: All keys of the command.
    """
    groups = {key.rpartition(".")[0] for key in keys}
    names = [re.split(r"[=+]", a.removeprefix("--"))[0] for a in arguments if a.startswith("--")]
    return [name for name in names if "." in name and name not in keys and name.rpartition(".")[0] in groups]


def reason(error: Exception) -> str:
    """Return the message of an error, without jsonargparse's list of all types that the key accepts."""
    found = _UNION.match(str(error))
    return found.group(1) if found else str(error)


def known_keys(parser: Any) -> set[str]:
    """Return the keys of a parser and of its subcommands, as the user writes them."""
    keys: set[str] = set()
    for action in parser._actions:
        if action.dest.endswith(".help"):
            continue
        keys.add(action.dest)
        keys.update(_fields(getattr(action, "_typehint", None), action.dest))
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                keys |= known_keys(subparser)
    return keys


def _fields(typehint: Any, key: str) -> Iterator[str]:
    """Yield the keys below ``key`` of a dataclass, or of a dataclass in a union, which has no actions in the parser."""
    for kind in (typehint, *get_args(typehint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            for name, hint in get_type_hints(kind).items():
                yield f"{key}.{name}"
                yield from _fields(hint, f"{key}.{name}")


def _class_keys(class_path: str | None, prefix: str) -> list[str]:
    """Return the keys of the dataclass arguments of a class, below ``prefix``."""
    if class_path is None:
        return []
    hints = get_type_hints(_load(class_path).__init__)
    return [key for name, hint in hints.items() for key in _fields(hint, f"{prefix}.{name}")]


def _path(message: str) -> tuple[str, str | None]:
    """Return the key in the innermost part of a message, and the class that has the key as an argument."""
    path, class_path = "", None
    for found in _KEY_OR_CLASS.finditer(message):
        if found["class_path"]:
            class_path = found["class_path"]
        else:
            path, class_path = _join(path, class_path, found["key"]), None
    return path, class_path


def _join(path: str, class_path: str | None, key: str) -> str:
    """Append ``key`` to ``path``: after ``init_args`` for an argument of a class, directly for a field of a dataclass."""
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
    """Return the arguments of a class and of its base classes."""
    loaded = _load(class_path)
    signatures = [
        inspect.signature(base) for base in getattr(loaded, "__mro__", ()) if "__init__" in vars(base)
    ]
    return [
        p.name for signature in signatures for p in signature.parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]  # fmt: skip


def _deeper(name: str, keys: Collection[str]) -> str:
    """Suggest keys that contain the parts of a name in order, for a name that leaves out a group.

    The last parts of the name are dropped until a key matches.
    """
    parts = name.split(".")
    while len(parts) > 1 and ".".join(parts) not in keys:
        found = sorted((key for key in keys if _holds(key, parts)), key=lambda key: (key.count("."), key))
        if found:
            return f"; did you mean {' or '.join(found[:2])}?"
        parts.pop()
    return ""


def _holds(key: str, parts: Sequence[str]) -> bool:
    rest = iter(key.split("."))
    return (
        key.count(".") >= len(parts)
        and key.split(".")[-1] == parts[-1]
        and all(part in rest for part in parts)
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    known = [n for n in names if not n.startswith("_") and not name.startswith(f"{n}.")]
    found = process.extractOne(name, known, scorer=fuzz.ratio, score_cutoff=60)
    return f"; did you mean {found[0]}?" if found else ""


def _type_name(expected: str) -> str:
    if literal := re.match(r"typing\.Literal\[(.*)\]", expected):
        return f"one of {literal.group(1)}"
    return re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", expected)
