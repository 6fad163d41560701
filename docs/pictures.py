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
    # A width of its own keeps a short line from being blown up to the width of the page.
    svg = re.sub(r'viewBox="0 0 ([\d.]+) ', _with_width, svg, count=1)
    (IMAGES / f"{name}.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg))
    print(name, f"{len(svg):,} bytes")


def _with_width(match: re.Match[str]) -> str:
    return f'width="{0.7 * float(match[1]):.0f}" {match[0]}'


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


SHORT = """model: espalier.zoo:lenet300
data: espalier.zoo:digits
holdout: 200
stages:
  - train: {epochs: 5, batch_size: 16}
  - prune: {density: 0.1}
  - retrain: {epochs: 5, batch_size: 16}
  - share: {bits: 4}
  - save: {path: model.esp}
  - evaluate: {split: test, name: compressed}
"""


def files(folder: Path) -> None:
    """Checkpoints and ``.esp`` files."""
    data = Path(os.environ["ESPALIER_DATA"])
    shutil.copy(data / "resnet_cifar10" / "resnet20.safetensors", folder)
    for source in (data / "squeezenet_deep_compression").iterdir():
        shutil.copy(source, folder)
    compress = "compress resnet20.safetensors -o resnet20.esp --bits conv=6,linear=8"
    terminal("compress", compress, folder)
    terminal("verify", "verify resnet20.esp --against resnet20.safetensors", folder)
    terminal("decompress", "decompress resnet20.esp -o back.safetensors", folder)
    convert = "convert compressed_SqueezeNet.net --prototxt SqueezeNet_deploy.prototxt"
    terminal("convert", f"{convert} -o squeezenet.esp", folder)


def demo(folder: Path) -> None:
    """The demo, what its file holds, and its report."""
    terminal("demo", "demo --dataset digits --out demo", folder)
    terminal("inspect", "inspect demo/model.esp", folder)
    terminal("report", "report demo -o report.html --figures figures", folder)
    for figure in ("waterfall", "weights-fc1.weight", "codes-fc1.weight"):
        shutil.copy(folder / "figures" / f"{figure}.svg", IMAGES)
    screenshot("report-page", folder / "report.html")


def profile(folder: Path) -> None:
    """A network small enough that its table fits on a page."""
    options = "--model espalier.zoo:lenet5 --input-shape 1,28,28 --batch 64"
    terminal("profile", f"profile {options} --plot time.svg", folder)
    shutil.copy(folder / "time.svg", IMAGES / "profile-figure.svg")


def speed(folder: Path) -> None:
    """ResNet-20 with half of the filters that its shortcuts let go."""
    import torch

    import espalier
    from espalier import zoo

    model = zoo.resnet20()
    espalier.prune_filters(model, 0.5, example=torch.zeros(1, 3, 32, 32))
    espalier.save(model, folder / "pruned.esp")
    terminal(
        "speed", "speed pruned.esp --model espalier.zoo:resnet20 --input-shape 3,32,32", folder
    )


def analysis(folder: Path) -> None:
    """A short run, and what can be asked of it."""
    (folder / "short.yaml").write_text(SHORT)
    terminal("run", "run short.yaml --out short", folder)
    terminal("sensitivity", "sensitivity short --density 0.05,0.1,0.3 --out sweep -j 1", folder)
    terminal("choose", "choose sweep --max-loss 1", folder)
    terminal("search", "search sweep --max-loss 1 --trials 30 -j 1", folder)
    terminal("study", "study short --figures table --epochs 0 --out study -j 1", folder)


PARTS = {"files": files, "demo": demo, "profile": profile, "speed": speed, "analysis": analysis}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    IMAGES.mkdir(exist_ok=True)
    for part in parser.parse_args().parts:
        with TemporaryDirectory() as name:
            PARTS[part](Path(name))


if __name__ == "__main__":
    main()
