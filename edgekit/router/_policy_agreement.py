"""Whether the cloud's answer says the same as the device's. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgekit.bundle import Signature, TensorSpec
from edgekit.errors import EdgeKitError
from edgekit.router._cascade import ConfidenceRule
from edgekit.runtime._compare import check_metrics, compare_outputs, thresholds_for, top1_agreement

__all__ = ["agree"]

_PRECISION = "int8"  # the widest limits: the tiers may run the model in different precisions


def agree(device: Mapping[str, np.ndarray], cloud: Mapping[str, np.ndarray], rule: ConfidenceRule | None) -> bool:
    """True when both answers say the same.

    Where the policy names an output of classes (a cascade of ``probabilities`` or ``logits``), the same class in every row is all that counts: the cloud's model
    may be another one, with other numbers. Everywhere else, every output of the device must be within the limits that a build holds an int8 artifact to, and
    text must be equal.
    """
    if rule is not None and rule.kind != "score":
        names = [rule.output] if rule.output else [name for name, array in device.items() if array.dtype.kind in "fiu"][:1]
        return all(_same_classes(device.get(name), cloud.get(name)) for name in names)
    return all(_same(name, array, cloud.get(name)) for name, array in device.items())


def _same_classes(device: np.ndarray | None, cloud: np.ndarray | None) -> bool:
    if device is None or cloud is None or device.shape != cloud.shape or not device.size or not device.ndim:
        return False
    rows = [array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (device, cloud)]
    return top1_agreement([(rows[0], rows[1])]) == 1.0


def _same(name: str, device: np.ndarray, cloud: np.ndarray | None) -> bool:
    if cloud is None:
        return False
    if device.dtype.kind not in "fiub":
        return bool(np.array_equal(device, cloud))
    try:
        signature = Signature((), (TensorSpec(name, device.dtype.name, device.shape),))
        return not check_metrics(compare_outputs([{name: device}], [{name: cloud}], signature), thresholds_for(_PRECISION))
    except EdgeKitError:  # another dtype or shape, or no numbers
        return False
