"""A study as figures and tables, and which of the paper's findings it shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from espalier.analysis.figures import Axis, Figure, curves
from espalier.analysis.study import Study, StudyPoint
from espalier.analysis.study_cases import FIGURES
from espalier.analysis.tables import markdown

_TITLES = {
    "compression": "Accuracy against size (figure 6)",
    "bits": "Accuracy against bits (figure 7)",
    "initialisation": "Initialisations of k-means (figure 8)",
    "table": "Bits of conv and fc layers (table 6)",
}
_FIGURE_6 = ("pruning", "sharing", "pruning and sharing", "truncated SVD")
LOST = 0.5
"""Points of accuracy that are more than noise on ten thousand images."""


def study_figures(study: Study) -> list[Figure]:
    """Figures 6, 7 and 8, those that the study has."""
    found = []
    for figure in FIGURES[:3]:
        points = study.of(figure)
        if not points:
            continue
        sized = figure == "compression"
        rows = [
            {
                "series": p.case.series,
                "bits": p.case.x,
                "share": p.share,
                "metric": p.metric,
            }
            for p in points
        ]
        x = Axis("share", "file / dense network", log=True, format=".1%") if sized else Axis("bits")
        found.append(
            curves(
                rows,
                x,
                Axis("metric", study.metric),
                series="series",
                title=_TITLES[figure],
                name=f"study-{figure}",
                rules={"as it is": study.baseline},
            )
        )
    return found


def study_tables(study: Study) -> str:
    """Every point, in Markdown: a table for each figure."""
    parts = [
        f"{study.metric} of the network {study.baseline:.2f}, of the pruned one "
        f"{study.pruned:.2f}; dense tensors {study.original_bytes:,} bytes.\n"
    ]
    for figure in FIGURES:
        points = study.of(figure)
        if points:
            rows = [
                [
                    p.case.series,
                    f"{p.case.x:g}",
                    f"{p.file_bytes:,}",
                    f"{100 * p.share:.2f}",
                    f"{p.metric:.2f}",
                    f"{p.metric - study.baseline:+.2f}",
                ]
                for p in points
            ]
            titles = [
                "",
                "density, bits or energy",
                "bytes",
                "size %",
                study.metric,
                "change",
            ]
            parts.append(f"## {_TITLES[figure]}\n\n{markdown((titles, rows))}")
    return "\n".join(parts)


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings: whether it holds here, and the numbers that say so."""

    figure: str
    paper: str
    holds: bool
    here: str


def findings(study: Study) -> list[Finding]:
    """The paper's findings that the study's figures can show. Higher metrics are better."""
    found: list[Finding] = []
    if all(study.of("compression", series) for series in _FIGURE_6):
        found += _of_compression(study)
    if study.of("bits"):
        found += _of_bits(study)
    if study.of("initialisation"):
        found += _of_initialisations(study)
    if study.of("table"):
        found += _of_table(study)
    return found


def _smallest(points: Iterable[StudyPoint], baseline: float) -> StudyPoint | None:
    kept = [p for p in points if p.metric >= baseline - LOST]
    return min(kept, key=lambda p: p.file_bytes, default=None)


def _of_compression(study: Study) -> list[Finding]:
    best = {}
    for series in _FIGURE_6:
        point = _smallest(study.of("compression", series), study.baseline)
        best[series] = 100 * point.share if point else 100.0
    if study.of("compression", "Tucker-2"):
        point = _smallest(study.of("compression", "Tucker-2"), study.baseline)
        best["Tucker-2"] = 100 * point.share if point else 100.0
    said = ", ".join(f"{series} to {share:.2f}%" for series, share in best.items())
    both, alone = best["pruning and sharing"], min(best["pruning"], best["sharing"])
    here = f"within {LOST} points of the network: {said}"
    return [
        Finding(
            "6",
            "both together hold to a smaller size than either alone",
            both < alone,
            here,
        ),
        Finding(
            "6",
            "pruning or sharing alone lose accuracy below about 8% of the size",
            4 <= alone <= 12,
            f"they hold to {best['pruning']:.2f}% and {best['sharing']:.2f}% (entropy-coded files)",
        ),
        Finding("6", "both together hold to about 3%", both <= 3.5, f"to {both:.2f}%"),
        Finding(
            "6",
            "truncated SVD is far worse",
            best["truncated SVD"] > 2 * both,
            f"it holds to {best['truncated SVD']:.2f}%",
        ),
    ]


def _bits_needed(study: Study, series: str, baseline: float) -> float | None:
    kept = [p.case.x for p in study.of("bits", series) if p.metric >= baseline - LOST]
    lost = [p.case.x for p in study.of("bits", series) if p.metric < baseline - LOST]
    needed = [x for x in kept if not lost or x > max(lost)]
    return min(needed, default=None)


def _of_bits(study: Study) -> list[Finding]:
    found = []
    needed = {}
    for kind in ("conv", "fc"):
        for base, baseline in (("trained", study.baseline), ("pruned", study.pruned)):
            if study.of("bits", f"{kind}, {base}"):
                needed[kind, base] = _bits_needed(study, f"{kind}, {base}", baseline)

    def said(kind: str, base: str) -> str:
        bits = needed.get((kind, base))
        return "no number of bits" if bits is None else f"{bits:g} bits"

    if ("conv", "pruned") in needed and ("fc", "pruned") in needed:
        conv, fc = needed["conv", "pruned"], needed["fc", "pruned"]
        found += [
            Finding(
                "7",
                "conv layers need more bits than fc layers",
                conv is not None and fc is not None and conv > fc,
                f"within {LOST} points, pruned: conv {said('conv', 'pruned')}, fc "
                f"{said('fc', 'pruned')}; not pruned: conv {said('conv', 'trained')}, fc "
                f"{said('fc', 'trained')}",
            ),
            Finding(
                "7",
                "conv layers fall below 4 bits, fc layers below 2",
                conv == 4 and fc == 2,
                f"conv needs {said('conv', 'pruned')}, fc {said('fc', 'pruned')}",
            ),
        ]
    pairs = [
        (needed[k, "trained"], needed[k, "pruned"])
        for k in ("conv", "fc")
        if (k, "pruned") in needed
    ]
    found.append(
        Finding(
            "7",
            "pruning does not hurt quantization: as many bits are needed after it",
            all(a is not None and b is not None and b <= a for a, b in pairs),
            "; ".join(
                f"{k}: {said(k, 'trained')} before, {said(k, 'pruned')} after"
                for k in ("conv", "fc")
                if (k, "pruned") in needed
            ),
        )
    )
    return found


def _of_initialisations(study: Study) -> list[Finding]:
    found = []
    for suffix, when in (("", "before fine-tuning"), (", fine-tuned", "after fine-tuning")):
        series = {
            i: study.of("initialisation", i + suffix) for i in ("random", "density", "linear")
        }
        if not all(series.values()):
            continue
        means = {i: sum(p.metric for p in points) / len(points) for i, points in series.items()}
        said = ", ".join(f"{i} {mean:.2f}" for i, mean in means.items())
        low = {i: min(points, key=lambda p: p.case.x) for i, points in series.items()}
        few = ", ".join(f"{i} {p.metric:.2f}" for i, p in low.items())
        bits = next(iter(low.values())).case.x
        found.append(
            Finding(
                "8",
                f"linear initialisation is best ({when})",
                means["linear"] >= max(means.values()),
                f"mean over all bits: {said}; at {bits:g} bits: {few}",
            )
        )
    return found


def _of_table(study: Study) -> list[Finding]:
    changes = {p.case.series: p.metric - study.pruned for p in study.of("table")}
    said = ", ".join(f"{name}: {change:+.2f}" for name, change in changes.items())
    return [
        Finding(
            "table 6",
            "8/5 and 8/4 bits cost nothing, 4/2 costs about two points (AlexNet, top-1)",
            changes["8/5"] > -LOST and changes["8/4"] > -LOST and changes["4/2"] < -LOST,
            said,
        )
    ]
