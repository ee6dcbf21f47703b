"""Where things are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilegen import settings

VARIABLES = {"TILEGEN_CACHE_DIR": settings.cache_dir, "TILEGEN_LOG_DIR": settings.log_dir}


@pytest.mark.parametrize("variable", VARIABLES)
def test_the_environment_decides(monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, str(tmp_path))
    assert VARIABLES[variable]() == tmp_path


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_relative_folder_is_made_absolute(monkeypatch, tmp_path, variable):
    """Worker processes run elsewhere and must mean the same folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "here")
    assert VARIABLES[variable]() == tmp_path / "here"


@pytest.mark.parametrize("variable", VARIABLES)
def test_home_is_expanded(monkeypatch, variable):
    monkeypatch.setenv(variable, "~/tiles")
    assert VARIABLES[variable]() == Path.home() / "tiles"


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_the_default_is_the_users_own_folder(monkeypatch, variable, value):
    monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    assert "tilegen" in VARIABLES[variable]().parts
    assert Path.home() in VARIABLES[variable]().parents


def test_shipped_logs_lie_in_the_package():
    assert (settings.shipped_log_dir() / "__init__.py").is_file()


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_debug_is_off_unless_asked_for(monkeypatch, value, expected):
    monkeypatch.setenv("TILEGEN_DEBUG", value)
    assert settings.debug() is expected
