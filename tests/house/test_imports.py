"""What importing costs, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LIMIT = 0.3
"""Seconds that tilegen may add to importing torch."""


def run(code: str, *options: str) -> str:
    child = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import tilegen",
        "import tilegen.mechanisms",
        "import tilegen.runtime",
        "import tilegen.bundle",
        "import tilegen.torch",
        "from tilegen import ops",
        "from tilegen import nn",
        "from tilegen import build, cache, doctor, settings",
        "from tilegen.tune import records, logs",
        "from tilegen.bench import spec",
        "import tilegen.cli.app",
    ],
)
def test_public_packages_do_not_import_the_compiler(statement):
    loaded = json.loads(run(f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"))
    assert "tvm" not in loaded


@pytest.mark.parametrize(
    "statement", ["import tilegen", "import tilegen.mechanisms", "import tilegen.runtime", "import tilegen.cli.app"]
)
def test_what_needs_no_tensor_does_not_import_torch(statement):
    loaded = json.loads(run(f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"))
    assert "torch" not in loaded


@pytest.mark.parametrize("statement", ["import tilegen", "from tilegen import ops, nn"])
def test_importing_costs_little_beside_torch(statement):
    """Processor time, the least of three processes: what else the machine does is not counted."""
    code = f"import torch, time\nstart = time.process_time()\n{statement}\nprint(time.process_time() - start)"
    assert min(float(run(code)) for _ in range(3)) <= LIMIT


def test_every_part_is_an_attribute_of_the_package():
    """Modules by their names; `mechanism` and `Instance` are what they are called."""
    code = "import tilegen\nfor name in tilegen.__all__:\n    assert getattr(tilegen, name).__name__ in (f'tilegen.{name}', name)"
    run(code)


def test_an_unknown_attribute_is_an_attribute_error():
    import tilegen

    with pytest.raises(AttributeError, match="no attribute 'attention'"):
        _ = tilegen.attention
