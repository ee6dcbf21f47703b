"""The command line: ``tilegen --help``.  One module a command; what is slow to import is imported inside it."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from tilegen.cli.app import app

    app()
