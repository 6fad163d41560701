"""The site has everything that is public."""

import re
from pathlib import Path

import pytest

import espalier
import espalier.errors

ROOT = Path(__file__).parents[2]


def test_every_public_name_is_on_a_page_of_the_api():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", pages, re.MULTILINE)}
    own_module = {name for name in espalier.__all__ if hasattr(espalier.errors, name)}
    assert "errors" in shown
    assert set(espalier.__all__) - own_module <= shown


@pytest.mark.parametrize("folder", ["", "api", "commands"])
def test_every_page_is_in_the_table_of_contents(folder):
    contents = (ROOT / "mkdocs.yml").read_text()
    pages = [p.relative_to(ROOT / "docs") for p in (ROOT / "docs" / folder).glob("*.md")]
    assert pages
    assert [p for p in pages if f": {p.as_posix()}\n" not in contents] == []
