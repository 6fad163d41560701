"""The pictures of the site: commands as a terminal shows them, figures, and the page of a report.

    python docs/pictures.py

writes ``docs/images``. It runs each command, so it takes minutes; data is looked for as by
``espalier`` itself. The screenshot of the report needs Chromium and Selenium.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent / "images"
# A font from the network would be asked for by everybody who opens the page.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
WIDTH, MOST_LINES = 108, 34


def terminal(name: str, command: str, folder: Path) -> None:
    """Run ``espalier COMMAND`` in ``folder``, and draw what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "espalier", *command.split()],
        cwd=folder,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.rstrip().splitlines()
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 8], "...", *lines[-7:]]
    text = Text.from_ansi("\n".join(lines))
    width = max(len(line) for line in text.plain.splitlines()) + 1
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(text)
    svg = console.export_svg(title=f"espalier {command}", code_format=FORMAT, unique_id=name)
    (IMAGES / f"{name}.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg))
    print(name, f"{len(svg):,} bytes")


def screenshot(name: str, page: Path, width: int = 1280, height: int = 900) -> None:
    """The top of a page, as a browser shows it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.resolve().as_uri())
        time.sleep(4)
        driver.save_screenshot(str(IMAGES / f"{name}.png"))
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--demo", type=Path, help="a folder with a finished demo on digits")
    arguments = parser.parse_args()
    data = Path(os.environ["ESPALIER_DATA"])
    IMAGES.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.demo:
            shutil.copytree(arguments.demo, folder / "demo")
        shutil.copy(data / "resnet_cifar10" / "resnet20.safetensors", folder)
        for source in (data / "squeezenet_deep_compression").iterdir():
            shutil.copy(source, folder)
        resume = " --resume" if arguments.demo else ""
        terminal("demo", f"demo --dataset digits --out demo{resume}", folder)
        terminal(
            "compress",
            "compress resnet20.safetensors -o resnet20.esp --bits conv=6,linear=8",
            folder,
        )
        terminal("inspect", "inspect demo/model.esp", folder)
        terminal("verify", "verify resnet20.esp --against resnet20.safetensors", folder)
        terminal("decompress", "decompress resnet20.esp -o back.safetensors", folder)
        recipe = "model: espalier.zoo:lenet300\ndata: espalier.zoo:digits\nholdout: 200\nstages:\n"
        recipe += "  - train: {epochs: 5, batch_size: 16}\n  - prune: {density: 0.1}\n"
        recipe += "  - retrain: {epochs: 5, batch_size: 16}\n  - share: {bits: 4}\n"
        recipe += "  - save: {path: model.esp}\n  - evaluate: {split: test, name: compressed}\n"
        (folder / "short.yaml").write_text(recipe)
        terminal("run", "run short.yaml --out short", folder)
        terminal(
            "profile",
            "profile --model espalier.zoo:lenet5 --input-shape 1,28,28 --batch 64 --plot time.svg",
            folder,
        )
        shutil.copy(folder / "time.svg", IMAGES / "profile-figure.svg")
        terminal("report", "report demo -o report.html --figures figures", folder)
        for figure in ("waterfall", "weights-fc1.weight", "codes-fc1.weight"):
            shutil.copy(folder / "figures" / f"{figure}.svg", IMAGES)
        screenshot("report-page", folder / "report.html")
        terminal("sensitivity", "sensitivity short --density 0.05,0.1,0.3 --out sweep -j 1", folder)
        print(sorted(p.name for p in (folder / "sweep").iterdir()))
        terminal(
            "convert",
            "convert compressed_SqueezeNet.net --prototxt SqueezeNet_deploy.prototxt "
            "-o squeezenet.esp",
            folder,
        )


if __name__ == "__main__":
    main()
