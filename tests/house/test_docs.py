"""The words agree with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tilegen import mechanisms

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert all((page.parent / link).exists() for link in links if link)


def test_the_index_lists_every_page():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in text for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")


def test_the_readme_has_every_operator_and_no_other():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == mechanisms.names()


def commands() -> list[str]:
    """Command lines of tilegen in code blocks."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return sorted(set(re.findall(r"^tilegen [^#\n]*", text, re.MULTILINE)))


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_docs_exists_with_its_options(line):
    import shlex

    from typer.testing import CliRunner

    from tilegen.cli.app import app

    name, *rest = shlex.split(line)[1:]
    group = [name, rest[0]] if name == "logs" else [name]
    result = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    options = [word.split("=")[0] for word in rest if word.startswith("-")]
    assert all(option in result.output for option in options)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """At a width of 8 instead of 512, against a bundle exported for it."""
    from typer.testing import CliRunner

    from tilegen.cli.app import app

    monkeypatch.chdir(tmp_path)
    exported = CliRunner().invoke(app, ["export", "elementwise_attention", "-s", "C=8", "-o", "ea.tilegen"])
    assert exported.exit_code == 0, exported.output
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    script = "\n".join(blocks).replace("512", "8").replace("1000", "10")
    (tmp_path / "readme.py").write_text(f"{script}\nassert y.shape == (4, 10, 8)\n", encoding="utf-8")
    child = subprocess.run([sys.executable, "readme.py"], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
