"""What the site takes from the code when it is built: the options of each command.

``<!-- options: compress -->`` on a page becomes the table of that command's options, so that a page
cannot fall behind its command.
"""

from __future__ import annotations

import re
from typing import Any

import typer

from espalier.cli import app

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):<code>~?(.*?)</code>")
_MARK = re.compile(r"<!-- options: (\w+) -->")


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Called by MkDocs with the text of each page."""
    return _MARK.sub(lambda match: options_table(match[1]), markdown)


def on_page_content(html: str, **_context: Any) -> str:
    """Called by MkDocs with each page: roles of docstrings become plain code."""
    return _ROLE.sub(r"<code>\1</code>", html)


def options_table(name: str) -> str:
    """The arguments and options of a command in Markdown."""
    command = typer.main.get_command(app).commands[name]
    lines = ["| option | meaning | default |", "| --- | --- | --- |"]
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        argument = parameter.param_type_name == "argument"
        words = parameter.metavar if argument and parameter.metavar else ", ".join(parameter.opts)
        flag = argument or getattr(parameter, "is_flag", False)
        metavar = "" if flag or not parameter.metavar else f" {parameter.metavar}"
        text = " ".join((getattr(parameter, "help", None) or "").split())
        lines.append(f"| `{words}{metavar}` | {_cell(text)} | {_cell(_default(parameter))} |")
    return "\n".join(lines)


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    if parameter.required or parameter.default in (None, False, "", ()):
        return ""
    return f"`{parameter.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\\[", "[")
