"""Which layers stay in float: quantise all, measure, and take layers back until the agreement target holds.

The order comes from each layer's own loss: how far the model's answers move when only this layer is int8, for the work that int8 saves
there. Layers that lose most for least work are kept first: a depthwise convolution with a thousandth of the multiplications may cost more than all large ones
together. The number that is kept doubles until the target holds, is then found by halves, and what turns out not to be needed is quantised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle import Signature
from edgekit.converters.quantization._agreement import agreement, class_rows, decibel, divergence, noise
from edgekit.converters.quantization._calibration import METHODS, Calibration
from edgekit.converters.quantization._plan import Plan, make_plan
from edgekit.converters.quantization._scheme import Scheme
from edgekit.converters.quantization._simulate import Simulation
from edgekit.errors import VerificationError
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for

if TYPE_CHECKING:
    import onnx

__all__ = ["Ladder", "Rung", "climb"]

Samples = Sequence[Mapping[str, np.ndarray]]
Answers = list[dict[str, np.ndarray]]

_FEW_ROWS = 32
"""Fewer answers than this must all agree; from here on one may differ, also where that is more than the target allows: less than one cannot be measured."""
_RETURNS = 6  # attempts to quantise a kept layer again
_HARDLY = 0.005  # share of a model's work that is not worth another measurement
_STEP = 4  # from few samples to so many times as many, then to all
_PROVEN = 8  # golden samples of a build
_SPARE = 0.25
_SCANNED = 4  # samples for the scan of single layers; it takes as many runs as there are layers


@dataclass(frozen=True)
class Rung:
    """One step: the layers kept in float, and what was measured then.

    Attributes:
        held: the target was reached, and the proof's own limits for int8 hold with something to spare.
        samples: how many it was measured on.
    """

    kept: tuple[str, ...]
    agreement: float
    snr_db: float
    held: bool = True
    samples: int = 0


@dataclass(frozen=True)
class Ladder:
    """The outcome.

    Attributes:
        plan: with the chosen range method.
        method: one of `METHODS`.
        kept: names of layers that stay in float.
        agreement: measured with these.
        snr_db: of the worst output, with these.
        rungs: every step in order, the first with nothing kept.
        layer_snr_db: per layer, with only this layer quantised; empty when the first rung was good enough.
        methods: per method tried, agreement and signal-to-noise with everything quantised.
        samples: how many were measured on.
        held: the target was reached.
    """

    plan: Plan
    method: str
    kept: tuple[str, ...]
    agreement: float
    snr_db: float
    rungs: tuple[Rung, ...]
    layer_snr_db: dict[str, float] = field(default_factory=dict)
    methods: dict[str, dict[str, float]] = field(default_factory=dict)
    samples: int = 0
    held: bool = True

    @property
    def quantised(self) -> int:
        """Layers that are int8."""
        return len(self.plan.layers) - len(self.kept)

    @property
    def share(self) -> float:
        """Of all multiplications with weights, those in int8; of the layers where no sizes are known."""
        total = sum(layer.products for layer in self.plan.layers)
        if not total:
            return self.quantised / max(len(self.plan.layers), 1)
        return sum(layer.products for layer in self.plan.layers if layer.name not in self.kept) / total

    def report(self) -> dict[str, object]:
        """JSON-able."""
        ops = {layer.name: layer.op for layer in self.plan.layers}
        return {
            "method": self.method,
            "methods": self.methods,
            "layers": len(self.plan.layers),
            "quantised": self.quantised,
            "quantised_share_of_multiplications": round(self.share, 4),
            "kept_in_float": [{"layer": name, "operator": ops[name], "snr_db": self.layer_snr_db.get(name)} for name in self.kept],
            "never_quantised": dict(sorted(self.plan.skipped.items())),
            "agreement": round(self.agreement, 6),
            "snr_db": self.snr_db,
            "samples": self.samples,
            "ladder": [
                {"kept": list(rung.kept), "agreement": round(rung.agreement, 6), "snr_db": rung.snr_db, "samples": rung.samples}
                for rung in self.rungs
            ],
            "layer_snr_db": [
                {"layer": name, "operator": ops[name], "snr_db": value}
                for name, value in sorted(self.layer_snr_db.items(), key=lambda item: (item[1], item[0]))
            ],
        }


def climb(
    model: onnx.ModelProto,
    signature: Signature,
    calibration: Calibration,
    scheme: Scheme,
    samples: Samples,
    target: float,
    method: str = "auto",
    plans: Mapping[str, Plan] | None = None,
    few: int = 0,
) -> Ladder:
    """Find what to keep in float.

    Args:
        model: prepared float32 model.
        signature: names its outputs.
        calibration: its ranges.
        scheme: the engine's form.
        samples: inputs to measure on; at least one.
        target: agreement to reach, see `agreement`.
        method: one of `METHODS`, or ``auto`` for the best of them with everything quantised.
        plans: by name, to choose from instead of those that the methods give.
        few: steps are measured on the first so many samples, and on all of them where they hold there; 0 for all at once.

    Returns:
        the ladder; ``held`` is false only when keeping every layer did not reach the target either.
    """
    wanted: tuple[str, ...] = (method,) if method != "auto" else (METHODS if scheme.activations else METHODS[:1])
    made = plans or {name: make_plan(model, calibration, scheme, name) for name in wanted}
    count = min(few or len(samples), len(samples))
    tried: dict[str, _Climb] = {}
    for each, plan in made.items():
        known = next(iter(tried.values())).reference if tried else None
        tried[each] = _Climb(model, signature, plan, samples, count, target, known)
    name = max(made, key=lambda each: (tried[each].first.held, min(tried[each].first.agreement, target), tried[each].first.snr_db))
    climbing = tried[name]
    kept = climbing.search()
    last = next(rung for rung in reversed(climbing.rungs) if rung.kept == kept)
    methods = {each: {"agreement": round(tried[each].first.agreement, 6), "snr_db": tried[each].first.snr_db} for each in made}
    return Ladder(
        climbing.plan, name, kept, last.agreement, last.snr_db, tuple(climbing.rungs), climbing.alone, methods, last.samples, last.held
    )


class _Climb:
    """Steps on few samples; one that holds there is measured on all before it counts."""

    def __init__(
        self, model: onnx.ModelProto, signature: Signature, plan: Plan, samples: Samples, few: int, target: float, reference: Answers | None
    ) -> None:
        self.plan, self.signature, self.samples, self.few, self.target = plan, signature, samples, few, target
        self.simulation = Simulation(model, plan, signature)
        self.reference = self.simulation.run(samples, ()) if reference is None else reference  # the float model's, whatever the plan
        self.rungs: list[Rung] = []
        self.alone: dict[str, float] = {}
        self.first = self._measure((), confirm=False)

    def _measure(self, kept: tuple[str, ...], *, confirm: bool = True) -> Rung:
        out = set(kept)
        on = [index for index, layer in enumerate(self.plan.layers) if layer.name not in out]
        actual = self.simulation.run(self.samples[: self.few], on)
        rung = self._judged(kept, actual)
        for count in (_STEP * self.few, len(self.samples)) if confirm else ():
            if rung.held and len(actual) < len(self.samples):
                actual += self.simulation.run(self.samples[len(actual) : count], on)
                rung = self._judged(kept, actual)
        self.rungs.append(rung)
        return rung

    def _judged(self, kept: tuple[str, ...], actual: list[dict[str, np.ndarray]]) -> Rung:
        reference = self.reference[: len(actual)]
        agreed = agreement(reference, actual, self.signature)
        held = agreed >= self._least(reference) and self._within(actual)
        return Rung(kept, agreed, decibel(noise(reference, actual, self.signature)), held, len(actual))

    def _least(self, reference: Samples) -> float:
        """Agreement that counts as the target, see `_FEW_ROWS`."""
        rows = class_rows(reference, self.signature)
        if not rows:  # judged by a cosine
            return self.target
        return min(self.target, 1 - 1 / rows) if rows >= _FEW_ROWS or len(reference) < len(self.samples) else self.target

    def _within(self, actual: list[dict[str, np.ndarray]]) -> bool:
        """The proof's own limits for int8 hold too, with `_SPARE` to spare, on samples like those that the proof will have."""
        step = max(1, self.few // _PROVEN)
        limits = {
            key: limit * (1 - _SPARE) if key.startswith("max_") else limit + _SPARE * (1 - limit)
            for key, limit in thresholds_for("int8").items()
        }
        try:
            return not check_metrics(compare_outputs(self.reference[: self.few : step], actual[: self.few : step], self.signature), limits)
        except VerificationError:
            return False

    def search(self) -> tuple[str, ...]:
        """Names of the layers to keep in float."""
        if not self.plan.layers or (self.first.held and self._measure(()).held):
            return ()
        order = self._by_gain()
        failed, held = 0, len(order)
        count = 1
        while count < len(order):
            if self._measure(tuple(order[:count])).held:
                held = count
                break
            failed, count = count, 2 * count
        if held == len(order):  # the float model itself
            self.rungs.append(Rung(tuple(order), 1.0, decibel(0.0), True, len(self.samples)))
        return self._give_back(tuple(order[: self._fewest(order, failed, held)]))

    def _fewest(self, order: list[str], failed: int, held: int) -> int:
        """Between a rung that failed and one that held, by halves, until what lies between is hardly any work."""
        while held - failed > 1 and self._work(order[failed:held]) > _HARDLY:
            middle = (held + failed) // 2
            if self._measure(tuple(order[:middle])).held:
                held = middle
            else:
                failed = middle
        return held

    def _work(self, names: Sequence[str]) -> float:
        """Share of the plan's work that is in these layers."""
        chosen = set(names)
        return sum(layer.work for layer in self.plan.layers if layer.name in chosen) / sum(layer.work for layer in self.plan.layers)

    def _by_gain(self) -> list[str]:
        """Layers in the order in which they are kept: what costs the output most for the work that int8 saves there comes first. Each is measured alone."""
        few = self.samples[:_SCANNED]
        loss: dict[str, float] = {}
        for index, layer in enumerate(self.plan.layers):
            actual = self.simulation.run(few, [index])
            self.alone[layer.name] = decibel(noise(self.reference[: len(few)], actual, self.signature))
            loss[layer.name] = divergence(self.reference[: len(few)], actual, self.signature) / layer.work
        return sorted(loss, key=lambda name: (-loss[name], name))

    def _give_back(self, kept: tuple[str, ...]) -> tuple[str, ...]:
        """Quantise kept layers again, those with the most work first, while the target holds."""
        for name in sorted(kept, key=lambda each: (-self._work([each]), each))[:_RETURNS]:
            if len(kept) == 1 or self._work([name]) < _HARDLY:
                break
            fewer = tuple(each for each in kept if each != name)
            if self._measure(fewer).held:
                kept = fewer
        return kept
