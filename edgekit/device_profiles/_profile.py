"""What EdgeKit claims to know about a device. Facts only; what to do with them is decided where they are used.

Every number carries its unit in its key and its source in ``sources``; the probe (`edgekit.device_profiles.probe`) runs
on the device and wins where the two disagree.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ENGINES", "PRECISIONS", "DeviceProfile", "EngineClaim", "PrecisionStatus"]

ENGINES = ("onnxruntime", "openvino", "tflite", "coreml", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "int8")

PrecisionStatus = Literal["fast", "works", "storage", "no"]
"""``fast``: hardware support. ``works``: runs, no gain. ``storage``: smaller file, computed in fp32. ``no``: refused."""


class EngineClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine that the device runs, best first in `DeviceProfile.engines`.

    Attributes:
        name: one of `ENGINES`.
        versions: version range as the vendor ships it (``"8.6 - 10.3"``); for TensorRT, by JetPack.
        opset_max: newest ai.onnx opset that this engine version reads; the artifact is written at or below it.
        deployment_target: Core ML target name (``iOS17``), empty elsewhere.
        compute_capability: NVIDIA compute capability (``"8.7"``), empty elsewhere.
        accelerators: delegates or execution units, preferred first (``["gpu", "cpu"]``).
        static_shapes: the engine takes fixed shapes only.
    """

    name: str
    versions: str = ""
    opset_max: int = 0
    deployment_target: str = ""
    compute_capability: str = ""
    accelerators: tuple[str, ...] = ()
    static_shapes: bool = False


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device family.

    Attributes:
        id: the name that ``--device`` takes.
        aliases: other names for it.
        title: for people.
        family: ``jetson``, ``raspberry-pi``, ``android``, ``apple``, ``intel``, ``x86``, ``arm64``, ``rtx``, ``coral``.
        arch: ``x86_64`` or ``aarch64``.
        os: ``linux``, ``android``, ``ios``, ``macos``, ``windows``.
        engines: what it runs, best first.
        precisions: status of each of `PRECISIONS`.
        memory_bytes: RAM of the usual variant.
        memory_shared: CPU and accelerator share this RAM.
        memory_bandwidth_bytes_per_s: peak, 0 when not published.
        cpu_cores: physical cores, 0 when it varies.
        cpu_features: names as in ``/proc/cpuinfo`` that every such device has.
        accelerators: hardware beside the CPU (``gpu``, ``dla``, ``npu``, ``ane``, ``tpu``) with their count.
        tops: vendor's marketing figure; for ordering, never for latency.
        tdp_w: typical maximum power in watts, 0 when not published.
        threads: CPU threads to use for one request, 0 lets the engine choose.
        workspace_bytes: cap for an engine builder's scratch memory on the device, 0 for none.
        limits: plain sentences that steer or forbid a build.
        inherits: id of the profile that this one extends.
        sources: per key (or ``*``), where the figure comes from.
        verified_by: ``claims`` until a receipt from such a device exists.
    """

    id: str
    title: str
    family: str
    arch: str
    os: str
    engines: tuple[EngineClaim, ...]
    precisions: dict[str, PrecisionStatus]
    memory_bytes: int
    sources: dict[str, str]
    aliases: tuple[str, ...] = ()
    memory_shared: bool = False
    memory_bandwidth_bytes_per_s: int = 0
    cpu_cores: int = 0
    cpu_features: tuple[str, ...] = ()
    accelerators: dict[str, int] = {}
    tops: float = 0.0
    tdp_w: float = 0.0
    threads: int = 0
    workspace_bytes: int = 0
    limits: tuple[str, ...] = ()
    inherits: str = ""
    verified_by: str = "claims"

    @property
    def engine(self) -> EngineClaim:
        """The engine of choice."""
        return self.engines[0]

    @property
    def fast_precisions(self) -> tuple[str, ...]:
        """Precisions that the hardware runs at full speed, in the order of `PRECISIONS`."""
        return tuple(name for name in PRECISIONS if self.precisions.get(name) == "fast")
