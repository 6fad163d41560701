"""The figures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.analysis.distributions import Symbols, layer_streams
from espalier.analysis.figures import (
    Axis,
    Figure,
    curves,
    figure_name,
    layer_bytes,
    points,
    symbol_lengths,
    training_curves,
    waterfall,
    weight_histogram,
)
from espalier.analysis.report.runs import LayerView, ReportRun, Sweep


@dataclass(frozen=True)
class Captioned:
    """A figure and the sentence under it."""

    figure: Figure
    caption: str


def overview(run: ReportRun) -> list[Captioned]:
    """From the original to the file, and which layers the bytes are in."""
    ledger = run.ledger
    saved = ledger["original_bytes"] / ledger["file_bytes"]
    return [
        Captioned(
            waterfall(run.steps),
            "A bar's length is the factor that a step saves; the steps are those of Deep "
            f"Compression, and multiply to {saved:.3g}.",
        ),
        Captioned(
            layer_bytes(layer_streams(ledger)),
            f"The file's {ledger['file_bytes']:,} bytes, less {ledger['overhead']:,} of its own "
            "header, directory and metadata.",
        ),
    ]


def training(run: ReportRun) -> list[Captioned]:
    """Loss and held-out error over the epochs of all stages; nothing where nothing was trained."""
    found = []
    begins: list[dict[str, Any]] = []
    for epoch in run.epochs:
        if not begins or epoch["stage"] != begins[-1]["stage"]:
            begins.append({"epoch": epoch["epoch"], "stage": epoch["stage"]})
    losses = [
        {"epoch": epoch["epoch"], "series": series, "loss": epoch[key]}
        for series, key in (("training", "train_loss"), ("held out", "loss"))
        for epoch in run.epochs
        if epoch[key]
    ]
    if losses:
        y = Axis("loss", "loss, nats (logarithmic)", log=True)
        figure = training_curves(losses, y=y, stages=begins, title="Loss", name="training-loss")
        found.append(
            Captioned(figure, "Mean loss of an epoch; held-out samples are never trained on.")
        )
    errors = [
        {"epoch": epoch["epoch"], "series": "held out", "error": epoch["error"]}
        for epoch in run.epochs
        if epoch["error"] is not None
    ]
    if errors:
        y = Axis("error", "held-out error, %", zero=True)
        figure = training_curves(
            errors, y=y, stages=begins, title="Held-out error", name="training-error"
        )
        lowest = min(row["error"] for row in errors)
        found.append(Captioned(figure, f"The lowest is {lowest:.2f} %."))
    return found


def layer(view: LayerView, row: Mapping[str, Any]) -> list[Captioned]:
    """The weights of a layer, and its codes and gaps with their code lengths."""
    found = [_weights(view)]
    for what, symbols, bits, coder in (
        ("codes", view.codes, row["code_bits_coded"], row["codes_coder"]),
        ("gaps", view.gaps, row["gap_bits_coded"], row["positions_coder"]),
    ):
        if symbols is not None:
            found.append(_symbols(view.name, what, symbols, bits, coder))
    return found


def _weights(view: LayerView) -> Captioned:
    figure = weight_histogram(
        view.name, view.weights.bins(), before=view.before, after=view.after, title="Weights"
    )
    if not view.after:
        return Captioned(figure, f"{sum(view.weights.counts):,} kept weights, stored exactly.")
    shared = f"share {len(view.after)} centroids"
    if not view.before:
        return Captioned(figure, f"The weights of the file, which {shared}.")
    return Captioned(
        figure,
        f"The weights before sharing; they {shared}, which fine-tuning moved "
        "from the upper row to the lower.",
    )


def _symbols(name: str, what: str, symbols: Symbols, bits: float, coder: str) -> Captioned:
    figure = symbol_lengths(
        name, what, symbols.rows, entropy=symbols.entropy_bits, title=what.capitalize()
    )
    filler = ", fillers too" if what == "gaps" else ""
    return Captioned(
        figure,
        f"{symbols.fixed_bits} bits at fixed width{filler}, {symbols.huffman_bits:.2f} with these "
        f"Huffman code words, {symbols.entropy_bits:.2f} by entropy. In the file: {bits:.2f} for "
        f"each kept weight, by {coder}, tables included.",
    )


def sensitivity(sweep: Sweep) -> list[Captioned]:
    """One figure for each axis of a sweep, one line for each layer."""
    found = []
    for axis in sweep.axes:
        rows = [row for row in sweep.rows if row["axis"] == axis]
        measured = any(row["metric"] is not None for row in rows)
        field = "metric" if measured else "relative_error"
        label = sweep.metric if measured else "relative error of the weights"
        few = max(row["value"] for row in rows) <= 1
        x = Axis("value", axis, log=few, format="" if few else "d")
        rules = {"as it was": sweep.baseline} if measured and sweep.baseline is not None else None
        figure = curves(
            rows,
            x,
            Axis(field, label),
            title=f"Sensitivity to {axis}",
            name=figure_name("sensitivity", axis),
            rules=rules,
        )
        found.append(Captioned(figure, "One layer at a time, nothing retrained."))
    return found


def comparison(runs: list[ReportRun]) -> list[Captioned]:
    """Error against size, where at least two runs measured one."""
    rows = [
        {"run": run.name, "bytes": run.ledger["file_bytes"], "error": run.evaluations[-1]["error"]}
        for run in runs
        if run.evaluations
    ]
    if len(rows) < 2:
        return []
    figure = points(
        rows,
        Axis("bytes", "bytes of the file", format=","),
        Axis("error", "error, %"),
        label="run",
        title="Error against size",
        name="comparison",
    )
    return [Captioned(figure, "Further to the left is smaller, further down is better.")]


def all_figures(run: ReportRun) -> Iterator[Figure]:
    """Every figure of a run, one after another."""
    rows = {row["name"]: row for row in run.ledger["tensors"]}
    for shown in (*overview(run), *training(run)):
        yield shown.figure
    if run.sweep:
        for shown in sensitivity(run.sweep):
            yield shown.figure
    for view in run.layers:
        for shown in layer(view, rows[view.name]):
            yield shown.figure
