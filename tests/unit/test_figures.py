"""Figures: what they draw is what they were given, and their colours can be told apart."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from espalier.analysis import figures
from espalier.analysis.figures import THEMES, Axis
from espalier.errors import InvalidArgument

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

SWEEP = [
    {"layer": layer, "density": density, "error": error}
    for layer, errors in (("conv1", (9.0, 2.0, 1.0)), ("fc.1", (3.0, 1.5, 1.0)))
    for density, error in zip((0.1, 0.5, 1.0), errors, strict=True)
]


def sweep(rows=SWEEP, **options):
    x, y = Axis("density", log=True), Axis("error", "error, %")
    return figures.curves(rows, x, y, title="Error by density", **options)


def all_figures():
    """One of each kind, small."""
    bins = [{"low": i / 10, "high": (i + 1) / 10, "weights": i % 4} for i in range(-5, 5)]
    streams = dict.fromkeys(("positions", "codes", "values", "codebook", "tables", "header"), 3)
    symbols = [{"symbol": i, "count": 8 >> i, "bits": i + 1} for i in range(4)]
    epochs = [{"epoch": e, "series": "training", "loss": 1 / e} for e in (1, 2, 3)]
    stages = [{"epoch": 1, "stage": "train"}, {"epoch": 3, "stage": "retrain"}]
    runs = [{"run": "a", "bytes": 900, "error": 1.0}, {"run": "b", "bytes": 800, "error": 2.0}]
    times = [{"op": "conv2d", "ms": 3.0, "kind": "tensor"}, {"op": "relu", "ms": 1.0, "kind": "no"}]
    return [
        sweep(rules={"as trained": 1.0}),
        figures.waterfall([("original", 4000), ("pruned", 900), ("coded", 1000)]),
        figures.layer_bytes([{"layer": "fc1"} | streams, {"layer": "fc2"} | streams]),
        figures.weight_histogram("fc1", bins, before=[-0.3, 0.2], after=[-0.2, 0.3]),
        figures.symbol_lengths("fc1", "codes", symbols, entropy=1.7),
        figures.training_curves(epochs, y=Axis("loss", log=True), stages=stages, title="Loss"),
        figures.points(runs, Axis("bytes"), Axis("error"), label="run", title="Runs"),
        figures.shares(times, label="op", value="ms", group="kind", unit="ms", title="Time"),
    ]


@pytest.mark.parametrize("theme", THEMES)
def test_every_figure_is_drawn_with_its_title_and_description(theme):
    for figure in all_figures():
        svg = ElementTree.fromstring(figure.svg(theme))
        said = {element.tag.rpartition("}")[2]: element.text for element in svg}
        assert (said["title"], said["desc"]) == (figure.title, figure.description)
        drawn = [element.text for element in svg.iter() if element.tag.endswith("}text")]
        assert figure.title in drawn
        assert THEMES[theme].background in figure.svg(theme)


def test_the_rows_of_a_figure_are_what_it_was_given():
    assert [{k: r[k] for k in SWEEP[0]} for r in sweep().rows if "layer" in r][:6] == SWEEP


def test_points_that_are_missing_are_left_out_and_none_at_all_is_an_error():
    holes = [SWEEP[0], SWEEP[1] | {"error": None}, SWEEP[2] | {"error": math.nan}]
    holes.append(SWEEP[3] | {"density": 0.0})  # not on a logarithmic axis
    assert {tuple(row.values()) for row in sweep(holes).rows} == {tuple(SWEEP[0].values())}
    with pytest.raises(InvalidArgument, match="Error by density: no row has both density and"):
        sweep([])


def test_a_waterfall_tells_savings_from_additions():
    figure = figures.waterfall([("original", 4000), ("pruned", 900), ("coded", 1000)])
    kinds = {row["step"]: row["kind"] for row in figure.rows}
    assert kinds == {"original": "whole", "pruned": "saved", "coded": "added", "the file": "whole"}
    assert "1,000 B, 4x smaller" in figure.svg()
    with pytest.raises(InvalidArgument, match="at least two steps"):
        figures.waterfall([("original", 4000)])


def test_many_layers_become_the_largest_and_the_others():
    rows = [
        {"layer": f"l{i}", "codes": i, "positions": 1, "values": 0, "codebook": 0}
        | {"tables": 0, "header": 0}
        for i in range(1, 41)
    ]
    figure = figures.layer_bytes(rows, most=10)
    by_layer = {}
    for row in figure.rows:
        by_layer[row["layer"]] = by_layer.get(row["layer"], 0) + row["bytes"]
    assert list(by_layer) == [f"l{i}" for i in range(32, 41)] + ["31 others"]
    assert sum(by_layer.values()) == sum(range(1, 41)) + 40


def test_figures_are_written_as_png_and_svg_and_kept_unless_forced(tmp_path):
    paths = sweep().save(tmp_path / "new")
    assert [path.name for path in paths] == ["curves.png", "curves.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidArgument, match="exists"):
        sweep().save(tmp_path / "new")
    sweep().save(tmp_path / "new", force=True)
    with pytest.raises(InvalidArgument, match=r"curves.gif: figures are written as .png or .svg"):
        sweep().save(tmp_path, ["gif"])


def test_a_figure_that_cannot_name_a_file_and_an_unknown_theme_are_refused():
    with pytest.raises(InvalidArgument, match="it names a file"):
        sweep(name="../curves")
    with pytest.raises(InvalidArgument, match="'sepia' is not one of light, dark"):
        sweep().svg("sepia")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
def test_text_and_marks_stand_out_as_wcag_asks(theme):
    for text in (theme.ink, theme.muted):
        assert contrast(text, theme.background) >= 4.5
        assert contrast(text, theme.surface) >= 4.5
    for colour in theme.categories:
        assert contrast(colour, theme.background) >= 3
    # The code lengths of the second category are text, too.
    assert contrast(theme.categories[1], theme.background) >= 4


# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as a dichromat sees it.
DICHROMACY = {
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def lab(colour, matrix=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    seen = [min(1, max(0, sum(m * p for m, p in zip(row, linear, strict=True)))) for row in matrix]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(m * p for m, p in zip(row, seen, strict=True)) for row in to_xyz]
    scaled = [v / w for v, w in zip(xyz, (0.9505, 1.0, 1.089), strict=True)]
    f = [v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in scaled]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("theme", THEMES.values(), ids=lambda theme: theme.name)
@pytest.mark.parametrize("sight", DICHROMACY)
def test_the_first_categories_differ_for_the_colour_blind(theme, sight):
    """Four series differ by colour alone (CIE76 of at least 10); all eight by colour or dashes."""
    for one, other in itertools.combinations(theme.categories[:4], 2):
        assert math.dist(lab(one, DICHROMACY[sight]), lab(other, DICHROMACY[sight])) >= 10
