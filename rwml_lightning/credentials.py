"""Checks that keep secrets out of configs, since a run's config is written to its folder, its store and its loggers.

No message shows a value that may be a secret.
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
    """Check that a server's URL is valid and has no user, query or fragment, any of which could hold a secret.

    Args:
        url: URL of a server.
        setting: Config key of the URL, for the error.

    Raises:
        ValueError: The URL is not accepted; the message names the config key.
    """
    if not _SERVER.fullmatch(url):
        raise ValueError(
            f"{setting} must look like http://127.0.0.1:8000/v1, without user, password, query and fragment; put a key into an "
            "environment variable and name the variable in api_key_env"
        )


def read_key(variable: str | None, setting: str) -> str | None:
    """Read a server's API key from an environment variable.

    Args:
        variable: Name of the variable; ``None`` if the server needs no API key.
        setting: Config key of the variable's name, for the error.

    Raises:
        ValueError: The name is not valid, or the variable is not set or holds characters that no API key has.
    """
    if variable is None:
        return None
    if not _VARIABLE.fullmatch(variable):
        raise ValueError(
            f"{setting} must be the name of an environment variable in capitals, such as OPENAI_API_KEY; never put the "
            "key itself into a config"
        )
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"{setting} names {variable}, which is not set in the environment")
    if not _KEY.fullmatch(key):  # the error of an HTTP client for such a header would show the key
        raise ValueError(
            f"{setting} names {variable}, which holds white space or characters that no API key has"
        )
    return key


def check_config(config: Mapping[str, Any] | Namespace) -> None:
    """Check that no value of a config looks like a secret, at any depth.

    Args:
        config: Nested mappings, namespaces and lists, as a parser returns them.

    Raises:
        ValueError: The config has a setting with a name such as ``api_key`` or ``password``, an authorization header, or a
            URL with a user, a query or a fragment. The message names the key of the first one.
    """
    for path, name, value in _texts(config, ""):
        plain_name = name.lower().removeprefix("x-").replace("-", "_")
        if _SECRET_NAME.fullmatch(plain_name) or _HEADER.fullmatch(value):
            raise ValueError(
                f"{path} looks like a secret, and a config is written to the run folder and to loggers; remove it and name an "
                "environment variable instead (in api_key_env if that key exists, else read one in your own code)"
            )
        if _USERINFO.search(value) or _WITH_QUERY.fullmatch(value):
            raise ValueError(
                f"{path} is a URL with a user, a query or a fragment, which may hold a key, and a config is written to the run "
                "folder and to loggers; use a URL without them"
            )


def _texts(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield path, key and value of every text that is not empty."""
    if isinstance(value, str):
        if value:
            yield path, name, value
    elif isinstance(value, Mapping | Namespace):
        entries = vars(value) if isinstance(value, Namespace) else value
        for key, inner in entries.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key), str(key))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}.{index}", name)
