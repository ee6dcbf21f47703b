"""``python -m tilegen`` is the command line."""

from tilegen.cli import main

main()
