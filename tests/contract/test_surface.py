"""The public names, the examples in docstrings, and the examples in the README."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import espalier

ROOT = Path(__file__).parents[2]
MODULES = [
    m.name
    for m in pkgutil.walk_packages(espalier.__path__, "espalier.")
    if not m.name.endswith("__main__")
]


def test_every_public_name_is_there():
    for name in espalier.__all__:
        value = getattr(espalier, name)
        assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'prnue'"):
        _ = espalier.prnue


def test_importing_espalier_loads_nothing():
    code = "import espalier, sys; sys.exit(bool({'torch', 'numpy', 'numba'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_core_unpacks_a_file_without_torch():
    path = ROOT / "tests" / "golden" / "lenet-huffman-v2.esp"
    code = (
        "import sys\nfrom espalier.container import read\n"
        f"tensors = read({str(path)!r}).dense()\n"
        "sys.exit(not tensors or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module):
    failed, _ = doctest.testmod(
        importlib.import_module(module),
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert not failed


def test_the_version_is_in_one_place():
    assert (
        f'__version__ = "{espalier.__version__}"'
        in (ROOT / "src" / "espalier" / "__init__.py").read_text()
    )
    assert espalier.__version__ not in (ROOT / "pyproject.toml").read_text().split("[tool")[0]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.fc1 = nn.Linear(8 * 36, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(torch.relu(self.conv1(x)).flatten(1))


def test_the_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 1, 8, 8)).square().sum().backward()
            optimizer.step()

    model = Network()
    names = {"model": model, "train": train, "build_model": Network}
    exec(compile(code, "README.md", "exec"), names)
    state = names["state_dict"]
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_the_readme_names_only_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^espalier (\w+)", text, re.MULTILINE))
    shown = subprocess.run(
        [sys.executable, "-m", "espalier", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert commands <= set(shown.split())
    assert commands
