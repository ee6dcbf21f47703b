"""Where commands write: results to stdout, everything else to stderr, so that output can be piped."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console


def out() -> Console:
    """The console of results; made anew, because tests replace stdout."""
    return Console(soft_wrap=True, highlight=False)


def err() -> Console:
    """The console of progress, remarks and errors."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on stdout, without colour."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
