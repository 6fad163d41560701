"""Measuring a network under many settings: in parallel, each once, each kept when it is done."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from espalier.analysis.axis import Setting, apply_setting, axes_of, describe, wants_example
from espalier.analysis.kept import Kept, fingerprint
from espalier.analysis.processes import in_processes, serial, until_done, workers
from espalier.compress.weights import measure as measure_error
from espalier.container import Writer
from espalier.errors import InvalidArgument, MissingDependency
from espalier.parametrization import attach, current, finalize
from espalier.progress import Progress
from espalier.state import Array
from espalier.structure.edits.factorize import factored_weight
from espalier.targets import Target, find_targets, unwrap
from espalier.torch_io import compressed_tensor
from espalier.training.metrics import Metrics

Evaluate: TypeAlias = Callable[[nn.Module], Any]
"""``evaluate(model)``: a number, or what :func:`espalier.evaluate` returns (then its accuracy)."""


@dataclass(frozen=True)
class LayerOutcome:
    """What a setting made of one layer's weight.

    ``size_bytes``: true coded size, with its entry in the file. ``density``: share of the weights
    that are written. ``relative_error``: Frobenius norm of the change over that of the weight, and
    ``sqnr_db`` the same in dB; None where the shape changed (and ``sqnr_db`` where nothing did).
    Of a layer that was factored, size and density are those of all factors, the latter in terms of
    the weight that they stand for.
    """

    size_bytes: int
    density: float
    relative_error: float | None
    sqnr_db: float | None


@dataclass(frozen=True)
class Outcome:
    """A measured setting. ``layer`` is there where the setting changes one layer alone."""

    setting: Setting
    metric: float | None
    layer: LayerOutcome | None
    seconds: float

    def record(self) -> dict[str, Any]:
        """All but the setting, as plain data."""
        values = asdict(self)
        del values["setting"]
        return values

    @classmethod
    def of(cls, setting: Setting, record: Mapping[str, Any]) -> Outcome:
        """The inverse of :meth:`record`."""
        layer = record["layer"]
        return cls(
            setting,
            record["metric"],
            LayerOutcome(**layer) if layer else None,
            record["seconds"],
        )


def number_of(value: Any) -> float:
    """What ``evaluate`` returned as a finite number; raises InvalidArgument if it is none."""
    if isinstance(value, Metrics):
        value = 100.0 - value.error
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"returned {type(value).__name__}, not a number") from None
    if not math.isfinite(number):
        raise InvalidArgument(f"returned {number}, not a finite number")
    return number


def call_evaluate(evaluate: Evaluate, model: nn.Module, what: str) -> float:
    """The metric of ``model``; any failure is one line that says with which setting."""
    try:
        return number_of(evaluate(model))
    except InvalidArgument as error:
        raise InvalidArgument(f"evaluate, with {what}: {error}") from None
    except Exception as error:
        line = " ".join(str(error).split()) or "no message"
        raise InvalidArgument(
            f"evaluate, with {what}: raised {type(error).__name__}: {line}"
        ) from error


def row_bytes(target: Target) -> tuple[int, float]:
    """``(bytes in the file, density)`` of a weight as it is now."""
    with Writer(io.BytesIO()) as writer:
        writer.add(target.name, compressed_tensor(target))
    row = writer.ledger[target.name]
    return row.total_bytes, row.keep


def weight_array(target: Target) -> Array:
    """The weight as the forward pass sees it, as numbers."""
    return target.value.detach().double().cpu().numpy()


def measure_layer(model: nn.Module, name: str, before: Array) -> LayerOutcome:
    """What was made of the layer ``name`` of ``model``, whose weight was ``before``."""
    targets = {target.name: target for target in find_targets(model)}
    if name in targets:
        (size, density), now = row_bytes(targets[name]), weight_array(targets[name])
    else:
        layer = name.removesuffix("weight")
        parts = [t for n, t in targets.items() if n.startswith(layer) and n.endswith(".weight")]
        rows = [row_bytes(part) for part in parts]
        size = sum(row[0] for row in rows)
        written = sum(row[1] * t.value.numel() for row, t in zip(rows, parts, strict=True))
        density = written / before.size
        now = factored_weight(model, layer.rstrip(".")).double().cpu().numpy()
    if now.shape != before.shape:
        return LayerOutcome(size, density, None, None)
    error = measure_error(before, now)
    sqnr = error.sqnr_db if math.isfinite(error.sqnr_db) else None
    return LayerOutcome(size, density, error.relative, sqnr)


def example_of(model: nn.Module, evaluate: Evaluate) -> Any:
    """The first sample that ``evaluate`` gives to a model."""
    seen: list[Any] = []

    def look(_module: nn.Module, inputs: Any) -> None:
        seen.append(tuple(x[:1].detach().clone() for x in inputs))
        raise _Seen

    watched = copy.deepcopy(model)
    watched.register_forward_pre_hook(look)
    with contextlib.suppress(_Seen, Exception):
        evaluate(watched)
    if not seen or not seen[0]:
        raise InvalidArgument("evaluate does not call the model, so that its inputs are not known")
    return seen[0]


class _Seen(BaseException):
    """Ends an evaluation of which one sample was wanted; no ``except Exception`` stops it."""


def measure_setting(
    model: nn.Module, evaluate: Evaluate | None, setting: Setting, example: Any = None
) -> Outcome:
    """Measure ``setting`` on a copy of ``model``."""
    start = monotonic()
    changed = apply_setting(copy.deepcopy(model), setting, example)
    layer = None
    if len(setting) == 1:
        (name,) = setting
        before = next(t for t in find_targets(model) if t.name == name)
        layer = measure_layer(changed, name, weight_array(before))
    metric = call_evaluate(evaluate, changed, describe(setting)) if evaluate else None
    return Outcome(setting, metric, layer, round(monotonic() - start, 4))


class Evaluations:
    """The settings of one model that have been measured, and how more are.

    Parameters
    ----------
    model : nn.Module
        Never changed.
    evaluate : callable or None
        Without it only the weights are measured.
    keep : path, optional
        File of finished measurements, made if it is not there; those in it are not made again.
    metric, data : str
        What ``evaluate`` measures, and on what; kept with the points, which must agree.
    jobs : int, optional
        Processes. None: what :func:`joblib.parallel_config` says where it is used, else one for
        each processor, at most 4, and one where the model is not on a CPU.
    progress : callable, optional
        Receives the measurements done, those in all, and a short text.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Evaluate | None,
        *,
        keep: str | os.PathLike[str] | None = None,
        metric: str = "accuracy",
        data: str = "",
        jobs: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.evaluate = unwrap(model), evaluate
        self.metric, self.progress, self.jobs = metric, progress, jobs
        self.fingerprint = fingerprint(self.model)
        about = {"model": self.fingerprint, "metric": metric if evaluate else "", "data": data}
        self.kept = Kept(keep, about)
        self._packed: tuple[Any, str] | None = None
        self._example: Any = None

    def example(self, axes: Iterable[str]) -> Any:
        """An input of the network, where one of the axes wants it and ``evaluate`` shows it."""
        if self._example is None and self.evaluate is not None and wants_example(axes):
            self._example = example_of(self.model, self.evaluate)
        return self._example

    def known(self, setting: Setting, *, metric: bool = True) -> Outcome | None:
        """The kept measurement of ``setting``; with ``metric``, only if that was measured."""
        record = self.kept.get(setting)
        if record is None or (record["metric"] is None and self._wants_metric(setting, metric)):
            return None
        return Outcome.of(setting, record)

    def _wants_metric(self, setting: Setting, metric: bool) -> bool:
        # A layer named without a value is measured as it is: the network is not another one.
        unchanged = bool(setting) and not any(setting.values())
        return metric and self.evaluate is not None and not unchanged

    def measure(self, settings: Iterable[Setting], *, metric: bool = True) -> list[Outcome]:
        """Every setting's outcome, in order; those not kept yet are measured now.

        Raises
        ------
        InvalidArgument
            ``evaluate`` raised, or gave no finite number. What was measured before stays kept.
        """
        wanted = list(settings)

        def missing() -> list[Setting]:
            return [s for s in wanted if self.known(s, metric=metric) is None]

        def attempt() -> Iterator[Outcome]:
            return self._run([(s, self._wants_metric(s, metric)) for s in missing()])

        done = len(wanted) - len(missing())

        def take(outcome: Outcome) -> None:
            nonlocal done
            self.kept.put(outcome.setting, outcome.record())
            done += 1
            if self.progress:
                self.progress(done, len(wanted), describe(outcome.setting))

        if done and self.progress:
            self.progress(done, len(wanted), "")
        until_done(attempt, lambda: len(self.kept), take)
        found = [self.known(s, metric=metric) for s in wanted]
        return [outcome for outcome in found if outcome is not None]

    def _run(self, tasks: Sequence[tuple[Setting, bool]]) -> Iterator[Outcome]:
        if not tasks:
            return
        jobs = self._jobs()
        example = self.example(axes_of(setting for setting, _ in tasks))
        if serial(jobs):
            for setting, metric in tasks:
                evaluate = self.evaluate if metric else None
                yield measure_setting(self.model, evaluate, setting, example)
            return
        payload, digest = self._payload()
        calls = (
            (payload, digest, {k: dict(v) for k, v in s.items()}, m, example) for s, m in tasks
        )
        yield from in_processes(_work, calls, jobs)

    def _jobs(self) -> int | None:
        on_cpu = all(p.device.type == "cpu" for p in self.model.parameters())
        return self.jobs if self.jobs is not None or on_cpu else 1

    @property
    def workers(self) -> int:
        """How many settings are measured at a time."""
        return workers(self._jobs())

    def _payload(self) -> tuple[Any, str]:
        """Model and ``evaluate`` as one array of bytes, which joblib hands to each worker once."""
        if self._packed is None:
            data = pack(self.model, self.evaluate)
            self._packed = np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest()
        return self._packed


def pack(model: nn.Module, evaluate: Evaluate | None) -> bytes:
    """Model and ``evaluate``, pickled by value, lambdas and functions of a notebook too."""
    try:
        import cloudpickle
    except ImportError:
        raise MissingDependency(
            "several processes need cloudpickle: pip install 'espalier[analysis]', or jobs=1"
        ) from None
    # Parametrized modules do not pickle: their state travels beside a plain copy.
    state = None
    plain = model
    if any(current(target) is not None for target in find_targets(model)):
        state = model.state_dict()
        plain = finalize(copy.deepcopy(model))
    try:
        return cloudpickle.dumps((plain, state, evaluate))
    except Exception as error:
        line = " ".join(str(error).split())
        raise InvalidArgument(
            f"the model or evaluate cannot be sent to another process ({line}); use jobs=1"
        ) from error


_held: tuple[str, nn.Module, Evaluate | None] | None = None


def _work(payload: Any, digest: str, setting: Setting, metric: bool, example: Any) -> Outcome:
    """Measure one setting in a worker, which unpacks the model once."""
    global _held
    if _held is None or _held[0] != digest:
        import cloudpickle

        model, state, evaluate = cloudpickle.loads(payload.tobytes())
        if state is not None:
            attach(model, state)
        _held = digest, model, evaluate
    _, model, evaluate = _held
    return measure_setting(model, evaluate if metric else None, setting, example)
