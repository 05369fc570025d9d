"""Keys and passwords stay out of configs, since a run's config is written to its folder, its store and its loggers.

No message repeats a value that may be a secret.
"""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SERVER = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")
_USERINFO = re.compile(r"://[^/\s@]*@")
_WITH_QUERY = re.compile(r"[a-z][a-z0-9+.-]*://\S*[?#]\S*", re.I)
_HEADER = re.compile(r"(bearer|basic|token) \S{16,}", re.I)
_SECRET_NAME = re.compile(
    r"(.*_)?(api_?keys?|(access|secret|private|subscription)_?key|secret|password|passwd|passphrase|credentials?|authorization)"
    r"|((api|access|auth|bearer|refresh|session|id|hf|github|wandb)_?)?token|auth|cookie"
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY = re.compile(r"[\x21-\x7e]+")


def check_server_url(url: str, setting: str) -> None:
    """Refuse an address that is none, or that could hold a key: with a user, a query or a fragment.

    Args:
        url: Address of a server.
        setting: Name of its key in the config, for the error.

    Raises:
        ValueError: Names the key.
    """
    if not _SERVER.fullmatch(url):
        raise ValueError(
            f"{setting} must look like http://127.0.0.1:8000/v1, without user, password, query and fragment; a key goes into an "
            "environment variable that api_key_env names"
        )


def read_key(variable: str | None, setting: str) -> str | None:
    """Value of the environment variable that holds a server's key; ``None`` without one.

    Args:
        variable: Its name.
        setting: Name of its key in the config, for the error.

    Raises:
        ValueError: The name is no name of a variable, or the variable is not set or holds more than a key.
    """
    if variable is None:
        return None
    if not _VARIABLE.fullmatch(variable):
        raise ValueError(
            f"{setting} must be the name of an environment variable in capitals, such as OPENAI_API_KEY; the key itself "
            "belongs in no config"
        )
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"{setting} names {variable}, which is not set in the environment")
    if not _KEY.fullmatch(key):  # an HTTP client's error about such a header would show it
        raise ValueError(f"{setting} names {variable}, which holds white space or characters that no key has")
    return key


def check_config(config: Mapping[str, Any] | Namespace) -> None:
    """Refuse a config that holds what looks like a secret, wherever it stands.

    Args:
        config: Nested mappings, namespaces and lists, as a parser gives them.

    Raises:
        ValueError: Names the key of the first one: a setting called ``api_key``, ``password`` or alike, a header, or a URL
            with a user, a query or a fragment.
    """
    for path, name, value in _texts(config, ""):
        plain_name = name.lower().removeprefix("x-").replace("-", "_")
        if _SECRET_NAME.fullmatch(plain_name) or _HEADER.fullmatch(value):
            raise ValueError(
                f"{path} looks like a secret, and a config is written to the run folder and to loggers; leave it out and name an "
                "environment variable (api_key_env, where there is such a key), or read one in your own code"
            )
        if _USERINFO.search(value) or _WITH_QUERY.fullmatch(value):
            raise ValueError(
                f"{path} is a URL with a user, a query or a fragment, which may hold a key, and a config is written to the run "
                "folder and to loggers; take a URL without them"
            )


def _texts(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, own name and value of every text that is not empty."""
    if isinstance(value, str):
        if value:
            yield path, name, value
    elif isinstance(value, Mapping | Namespace):
        entries = vars(value) if isinstance(value, Namespace) else value
        for key, inner in entries.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for place, inner in enumerate(value):
            yield from _texts(inner, f"{path}.{place}", name)
