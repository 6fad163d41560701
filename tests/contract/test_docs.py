"""The site: it builds strictly without a network, and what its tutorial says happens."""

import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from espalier.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMANDS = sorted(typer.main.get_command(app).commands)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial.md").read_text()
    names = {}
    for language, title, code in re.findall(
        r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            exec(compile(code, "tutorial.md", "exec"), names)
        elif title:
            (tmp_path / title).write_text(code)
        else:
            assert language == "sh"
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "espalier"
                run = [sys.executable, "-m", "espalier", *arguments]
                one = os.environ | {"OMP_NUM_THREADS": "1"}  # two threads wait for each other
                done = subprocess.run(run, env=one, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "run.html").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_page_with_a_picture(command):
    text = (DOCS / "commands" / f"{command}.md").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(\.\./(images/[^)]+)\)", text)
    assert pictures
    assert all((DOCS / picture).is_file() for picture in pictures)
    assert f"<!-- options: {command} -->" in text


def test_pictures_ask_nothing_of_the_network():
    for picture in (DOCS / "images").glob("*.svg"):
        text = re.sub(r'xmlns(:\w+)?="[^"]+"', "", picture.read_text())
        assert not re.search(r"(url\(|href=)[\"']?https?:", text), picture


class _Loads(HTMLParser):
    """What a page loads when it is opened."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        loaded = tag in ("script", "img") or attributes.get("rel") in ("stylesheet", "preconnect")
        url = attributes.get("src") or attributes.get("href") or ""
        if loaded and re.match(r"(https?:)?//", url):
            self.found.append(url)


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    site = tmp_path / "site"
    run = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(site)]
    # A proxy that refuses everything stands for a machine without a network.
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        run, cwd=ROOT, env=os.environ | closed, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = _Loads()
        loads.feed(page.read_text())
        assert loads.found == [], page
    options = (site / "commands" / "compress.html").read_text()
    assert "--lossless" in options
