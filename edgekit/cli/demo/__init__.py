"""The demo: one model from its file to a watched fleet, on this machine."""

from edgekit.cli.demo._story import DEVICES, DemoResult, Endpoints, run_demo

__all__ = ["DEVICES", "DemoResult", "Endpoints", "run_demo"]
