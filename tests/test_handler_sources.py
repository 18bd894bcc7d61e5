"""Step handlers are loaded from files and modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tachograph.workflow import registry
from tachograph_exporter import handler_sources

SOURCE = """
from tachograph.workflow import handler

loads = globals().get("loads", 0) + 1

@handler("test.{name}")
def work(context):
    return loads
"""


def test_files_of_one_name_in_two_directories_are_both_loaded(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "handlers.py").write_text(SOURCE.replace("{name}", name))
        handler_sources.load(str(tmp_path / name / "handlers.py"))
    assert registry.find("test.first") is not None
    assert registry.find("test.second") is not None


def test_a_file_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "once.py").write_text(SOURCE.replace("{name}", "once"))
    handler_sources.load(str(tmp_path / "once.py"))
    work = registry.find("test.once")
    monkeypatch.chdir(tmp_path)
    handler_sources.load("once.py")
    assert registry.find("test.once") is work


@pytest.mark.parametrize("source", ["no_such_module_here", "no_such_file.py"])
def test_what_does_not_exist_is_named(source: str) -> None:
    with pytest.raises(ImportError, match=source.removesuffix(".py")):
        handler_sources.load(source)


def test_a_file_that_fails_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        handler_sources.load(str(path))
    path.write_text(SOURCE.replace("{name}", "mended"))
    handler_sources.load(str(path))
    assert registry.find("test.mended") is not None
