"""Paths of the repository and its tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
IMPORTABLE = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
"""``PYTHONPATH`` of the processes that the tests start: it holds the packages under test and the helpers."""
