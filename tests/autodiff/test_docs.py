"""The worked example of docs/autodiff.md is what the code does."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "autodiff.md"


def test_the_worked_example(request: pytest.FixtureRequest):
    page = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    shown = re.search(r"prints the stages that the adjoint adds:\n\n```text\n(.*?)```", page, re.DOTALL).group(1)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(page.replace(shown, printed.getvalue()), encoding="utf-8")
        return
    assert printed.getvalue() == shown
