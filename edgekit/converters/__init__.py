"""From a source model to a bundle for one device."""

from edgekit.converters._build import BuildResult, build, build_many, build_result, choose_precision

__all__ = ["BuildResult", "build", "build_many", "build_result", "choose_precision"]
