"""TensorRT targets: a plan kit that a Jetson finishes itself, and a ready engine for RTX PCs."""

from edgekit.converters.tensorrt._jetson import JetsonEmitter
from edgekit.converters.tensorrt._rtx import RtxEmitter

__all__ = ["EMITTERS", "JetsonEmitter", "RtxEmitter"]

EMITTERS = {"tensorrt": JetsonEmitter(), "tensorrt-rtx": RtxEmitter()}
