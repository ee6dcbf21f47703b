"""The examples do what they say, on a small scale."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two classes of ten files with the same bytes in other orders, which only a network that mixes positions tells apart."""
    for name, unit in (("single", b"abab"), ("double", b"aabb")):
        (tmp_path / name).mkdir()
        for k in range(10):
            (tmp_path / name / f"{k}.txt").write_bytes(unit * (150 + 10 * k))
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "0.txt").write_bytes(b"not as long as a run")
    return tmp_path


def test_long_range_tells_apart_what_differs_in_order_alone(texts: Path) -> None:
    options = {"pattern": "*.txt", "length": 64, "steps": 40, "batch": 8, "dim": 16, "depth": 1, "taps": 8, "rate": 2e-2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(EXAMPLES / "long_range.py"), "--folder", str(texts), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 classes: double, single;")
    rows = {
        name: line.split()
        for line in done.stdout.splitlines()
        for name in ("chela", "attention", "naive Bayes")
        if line.strip().startswith(name + "  ")
    }
    assert float(rows["chela"][2].rstrip("%")) >= 90
    assert float(rows["naive Bayes"][2].rstrip("%")) <= 60
    for network in ("chela", "attention"):
        parameters, accuracy, milliseconds, _ = rows[network][1:]
        assert re.fullmatch(r"\d+,\d+", parameters)
        assert 0 <= float(accuracy.rstrip("%")) <= 100
        assert float(milliseconds) >= 0


def test_long_range_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "long_range.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "2 are needed" in done.stderr
