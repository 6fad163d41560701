"""Espalier: make trained neural networks small enough to ship, and fast enough to run.

>>> import espalier
>>> espalier.__version__.count(".")
2

The names below are imported when they are first used, so that ``import espalier`` costs nothing and
a process that only unpacks files never loads torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "espalier.analysis.choose": ["choose"],
    "espalier.analysis.search": ["search"],
    "espalier.analysis.sensitivity": ["sensitivity"],
    "espalier.analysis.speed": ["compare_speed"],
    "espalier.analysis.study": ["study"],
    "espalier.errors": ["CorruptFile", "DataUnavailable", "EspalierError", "EspalierWarning"]
    + ["FormatError", "InvalidArgument", "MissingDependency", "TruncatedFile"]
    + ["UnknownMethod", "UnsupportedVersion"],
    "espalier.analysis.profile": ["profile"],
    "espalier.analysis.report": ["write_report"],
    "espalier.parametrization": ["attach", "finalize"],
    "espalier.pruning": ["Pruner", "diagonal_fisher", "prune"],
    "espalier.quantization.curvature": ["collect_curvature"],
    "espalier.quantization.norms": ["reestimate_batchnorm"],
    "espalier.quantization.quantize": ["quantize"],
    "espalier.quantization.rd": ["quantize_rd", "search_lambda"],
    "espalier.quantization.share": ["Refresher", "share", "share_layerwise"],
    "espalier.rate_aware": ["RateAware"],
    "espalier.recipe": ["run_recipe"],
    "espalier.runtime": ["accelerate"],
    "espalier.structure.edit": ["edits_of"],
    "espalier.structure.factorize": ["factorize"],
    "espalier.structure.filters": ["prune_filters", "prune_filters_layerwise"],
    "espalier.structure.fold": ["fold_batch_norms"],
    "espalier.structure.merge": ["merge", "merge_layerwise", "parameter_groups"],
    "espalier.export.coreml": ["export_coreml"],
    "espalier.export.onnx": ["export_onnx"],
    "espalier.loading": ["load"],
    "espalier.torch_io": ["save"],
    "espalier.training": ["Distiller", "evaluate", "train"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from espalier.analysis.choose import choose
    from espalier.analysis.profile import profile
    from espalier.analysis.report import write_report
    from espalier.analysis.search import search
    from espalier.analysis.sensitivity import sensitivity
    from espalier.analysis.speed import compare_speed
    from espalier.analysis.study import study
    from espalier.errors import (
        CorruptFile,
        DataUnavailable,
        EspalierError,
        EspalierWarning,
        FormatError,
        InvalidArgument,
        MissingDependency,
        TruncatedFile,
        UnknownMethod,
        UnsupportedVersion,
    )
    from espalier.export.coreml import export_coreml
    from espalier.export.onnx import export_onnx
    from espalier.loading import load
    from espalier.parametrization import attach, finalize
    from espalier.pruning import Pruner, diagonal_fisher, prune
    from espalier.quantization.curvature import collect_curvature
    from espalier.quantization.norms import reestimate_batchnorm
    from espalier.quantization.quantize import quantize
    from espalier.quantization.rd import quantize_rd, search_lambda
    from espalier.quantization.share import Refresher, share, share_layerwise
    from espalier.rate_aware import RateAware
    from espalier.recipe import run_recipe
    from espalier.runtime import accelerate
    from espalier.structure.edit import edits_of
    from espalier.structure.factorize import factorize
    from espalier.structure.filters import prune_filters, prune_filters_layerwise
    from espalier.structure.fold import fold_batch_norms
    from espalier.structure.merge import merge, merge_layerwise, parameter_groups
    from espalier.torch_io import save
    from espalier.training import Distiller, evaluate, train

__all__ = [
    "CorruptFile",
    "DataUnavailable",
    "Distiller",
    "EspalierError",
    "EspalierWarning",
    "FormatError",
    "InvalidArgument",
    "MissingDependency",
    "Pruner",
    "RateAware",
    "Refresher",
    "TruncatedFile",
    "UnknownMethod",
    "UnsupportedVersion",
    "accelerate",
    "attach",
    "choose",
    "collect_curvature",
    "compare_speed",
    "diagonal_fisher",
    "edits_of",
    "evaluate",
    "export_coreml",
    "export_onnx",
    "factorize",
    "finalize",
    "fold_batch_norms",
    "load",
    "merge",
    "merge_layerwise",
    "parameter_groups",
    "profile",
    "prune",
    "prune_filters",
    "prune_filters_layerwise",
    "quantize",
    "quantize_rd",
    "reestimate_batchnorm",
    "run_recipe",
    "save",
    "search",
    "search_lambda",
    "sensitivity",
    "share",
    "share_layerwise",
    "study",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'espalier' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
