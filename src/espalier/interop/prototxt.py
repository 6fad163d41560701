"""Caffe's network descriptions: the text format, and of it the convolutions and their shapes.

Neither Caffe nor protobuf is needed: a description is a tree of ``key: value`` and ``key { ... }``.
The reader is strict. What it does not understand it refuses, since a layer passed over in silence
would shift every weight behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from espalier.errors import CorruptFile, FormatError, TruncatedFile

T = TypeVar("T")

MAX_BYTES = 1 << 19
"""Of a description: those of networks of hundreds of layers take half of it."""

_MAX_DEPTH = 32
_MAX_NUMBER = 1 << 31  # Caffe's own fields are 32 bits wide

_TOKEN = re.compile(
    r"""(?P<blank>[\s,;]+|\#[^\n]*)
      | (?P<mark>[{}:])
      | (?P<text>"[^"\\\n]*"|'[^'\\\n]*')
      | (?P<word>[\w.+-]+)""",
    re.VERBOSE,
)

KEEPS_CHANNELS = frozenset(
    ["ReLU", "Pooling", "Dropout", "LRN", "Softmax", "Sigmoid", "TanH", "ELU", "Power", "Split"]
)
"""Types of layers without weights whose outputs have the channels of their input."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of a description.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of its weights: filters, input channels of a group, rows, columns.
    """

    name: str
    shape: tuple[int, int, int, int]


class Message:
    """The fields between two braces, in order, each as often as it stands there."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.fields: list[tuple[str, str | Message]] = []

    def texts(self, key: str) -> list[str]:
        """The values of every ``key: value``."""
        found = [value for name, value in self.fields if name == key]
        if any(isinstance(value, Message) for value in found):
            raise CorruptFile(f"{self.what}: {key} is a block, not a value")
        return [value for value in found if isinstance(value, str)]

    def text(self, key: str, default: str | None = None) -> str:
        """The value of the only ``key: value``."""
        return _only(self.texts(key), f"{self.what}: {key}", default)

    def numbers(self, key: str, least: int = 1) -> list[int]:
        """The values of every ``key: value``, natural numbers from ``least``."""
        return [_number(text, f"{self.what}: {key}", least) for text in self.texts(key)]

    def number(self, key: str, default: int | None = None) -> int:
        """The value of the only ``key: value``, a number from 1."""
        return _only(self.numbers(key), f"{self.what}: {key}", default)

    def blocks(self, key: str) -> list[Message]:
        """Every ``key { ... }``."""
        found = [value for name, value in self.fields if name == key]
        if any(isinstance(value, str) for value in found):
            raise CorruptFile(f"{self.what}: {key} is a value, not a block")
        return [value for value in found if isinstance(value, Message)]

    def block(self, key: str) -> Message:
        """The only ``key { ... }``; one without fields if there is none."""
        return _only(self.blocks(key), f"{self.what}: {key}", Message(f"{self.what}: {key}"))


def _only(found: list[T], what: str, default: T | None) -> T:
    if len(found) > 1:
        raise CorruptFile(f"{what} is there {len(found)} times")
    if found:
        return found[0]
    if default is None:
        raise CorruptFile(f"{what} is missing")
    return default


def _number(text: str, what: str, least: int) -> int:
    value = int(text) if re.fullmatch(r"[0-9]{1,10}", text, re.ASCII) else -1
    if not least <= value < _MAX_NUMBER:
        raise CorruptFile(f"{what} is {text[:40]!r}, not a number from {least} to 2**31 - 1")
    return value


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and line of each token, and at last one of kind ``end``."""
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise CorruptFile(f"line {line}: {text[at : at + 20]!r} is not understood")
        kind = str(match.lastgroup)
        if kind != "blank":
            yield kind, match.group(), line
        line += match.group().count("\n")
        at = match.end()
    yield "end", "", line


def parse(text: str) -> Message:
    """The fields of a description in protobuf's text format.

    Raises
    ------
    CorruptFile, TruncatedFile
        With the line.

    Examples
    --------
    >>> parse('name: "net" layer { top: "a" top: "b" }').block("layer").texts("top")
    ['a', 'b']
    """
    top = Message("the description")
    stack = [top]
    tokens = _tokens(text)
    for kind, key, line in tokens:
        if kind == "end":
            if len(stack) > 1:
                raise TruncatedFile(f"line {line}: ends inside {stack[-1].what}")
            break
        if key == "}" and len(stack) > 1:
            stack.pop()
            continue
        if kind != "word":
            raise CorruptFile(f"line {line}: {key[:40]!r} stands where a name should")
        kind, value, line = next(tokens)
        if value == ":":
            kind, value, line = next(tokens)
            if kind in ("text", "word"):
                stack[-1].fields.append((key, value[1:-1] if kind == "text" else value))
                continue
        if value != "{":
            wrong = TruncatedFile if kind == "end" else CorruptFile
            raise wrong(f"line {line}: {key[:40]!r} has no value")
        if len(stack) > _MAX_DEPTH:
            raise CorruptFile(f"line {line}: over {_MAX_DEPTH} blocks inside each other")
        inner = Message(f"{key} of line {line}")
        stack[-1].fields.append((key, inner))
        stack.append(inner)
    return top


def convolutions(text: str) -> list[Convolution]:
    """The convolutions of a description, in its order, with the shapes of their weights.

    Input channels are followed from the network's input through the bottoms and tops of layers.

    Raises
    ------
    FormatError
        The text is malformed, a layer is of a type that is not understood, or a bottom is made by
        no layer before it.
    """
    net = parse(text)
    if net.blocks("layers"):
        raise CorruptFile("has 'layers' of Caffe's old format; upgrade it to 'layer'")
    channels = _input_channels(net)
    found: dict[str, Convolution] = {}
    for layer in net.blocks("layer"):
        name = layer.text("name")
        try:
            made = _convolution(name, layer, channels)
        except FormatError as error:
            raise type(error)(f"layer {name[:80]!r}: {error}") from None
        if made is not None:
            if name in found:
                raise CorruptFile(f"two convolutions are called {name[:80]!r}")
            found[name] = made
    return list(found.values())


def _input_channels(net: Message) -> dict[str, int]:
    """Channels of the inputs that are declared outside layers."""
    names, dims = net.texts("input"), net.numbers("input_dim")
    shapes = [dims[i : i + 4] for i in range(0, len(dims), 4)]
    shapes += [shape.numbers("dim") for shape in net.blocks("input_shape")]
    if len(names) != len(shapes):
        raise CorruptFile(f"{len(names)} inputs, and {len(shapes)} shapes of inputs")
    return {name: _channels_of(shape) for name, shape in zip(names, shapes, strict=True)}


def _channels_of(shape: list[int]) -> int:
    if len(shape) != 4:
        raise CorruptFile(f"the shape of an input has {len(shape)} dimensions, not 4")
    return shape[1]


def _convolution(name: str, layer: Message, channels: dict[str, int]) -> Convolution | None:
    """Put the channels of the layer's tops into ``channels``; what it is if a convolution."""
    kind, tops = layer.text("type"), layer.texts("top")
    made = None
    if kind == "Input":
        shapes = layer.block("input_param").blocks("shape")
        widths = [_channels_of(shape.numbers("dim")) for shape in shapes]
        if len(widths) != len(tops):
            raise CorruptFile(f"{len(tops)} tops, and {len(widths)} shapes")
        channels.update(zip(tops, widths, strict=True))
        return None
    bottoms = layer.texts("bottom")
    for bottom in bottoms:
        if bottom not in channels:
            raise CorruptFile(f"no layer before it makes its bottom {bottom[:80]!r}")
    widths = [channels[bottom] for bottom in bottoms]
    if not widths:
        raise CorruptFile(f"of type {kind[:40]!r} has no bottom")
    if kind == "Concat":
        if layer.block("concat_param").numbers("axis", 0) not in ([], [1]):
            raise CorruptFile("joins along another axis than that of channels")
        width = sum(widths)
    elif kind == "Convolution":
        if len(widths) != 1:
            raise CorruptFile(f"a convolution with {len(widths)} bottoms")
        made = Convolution(name, _shape(layer.block("convolution_param"), widths[0]))
        width = made.shape[0]
    elif kind in KEEPS_CHANNELS and len(widths) == 1:
        width = widths[0]
    else:
        known = ", ".join(sorted([*KEEPS_CHANNELS, "Concat", "Convolution", "Input"]))
        raise CorruptFile(f"type {kind[:40]!r} is not understood; understood are {known}")
    channels.update(dict.fromkeys(tops, width))
    return made


def _shape(param: Message, width: int) -> tuple[int, int, int, int]:
    """Of the weights of a convolution over ``width`` channels."""
    if param.text("bias_term", "true") != "true":
        raise CorruptFile("a convolution without biases, for which the layout has no place")
    filters, group = param.number("num_output"), param.number("group", 1)
    if width % group or filters % group:
        raise CorruptFile(f"{group} groups divide neither {width} channels nor {filters} filters")
    sizes = param.numbers("kernel_size")
    if not sizes:
        sizes = [param.number("kernel_h"), param.number("kernel_w")]
    elif param.texts("kernel_h") or param.texts("kernel_w") or len(sizes) > 2:
        raise CorruptFile("its kernel has more than one size")
    return filters, width // group, sizes[0], sizes[-1]
