"""What every test can use: one compile cache a run, golden files, and the reason when a GPU is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tilegen import _tvm

_tvm.ensure()  # before any test imports TVM for itself

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code makes now")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _why_no_gpu() if marked else None
    for item in marked if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device here"


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point cache and log at a folder of this run: nothing of the user's is read or written, compiling happens once."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the workers of a run share what they compile
    names = {"TILEGEN_CACHE_DIR": "tilegen-cache", "TILEGEN_LOG_DIR": "tilegen-logs"}
    with pytest.MonkeyPatch.context() as patch:
        for variable, folder in names.items():
            # `make test` runs pytest once a folder and gives all of these runs one cache.
            if f"TEST_{variable}" in os.environ:
                patch.setenv(variable, os.environ[f"TEST_{variable}"])
            else:
                patch.setenv(variable, str(root / folder))
        yield


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("name.txt", text)``: the text is what tests/golden holds; ``--update-golden`` writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip() + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} does not exist; look at the text, then run pytest --update-golden"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; if it should, run pytest --update-golden"

    return check
