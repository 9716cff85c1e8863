"""The deployable unit: one model for one device, with its proof. See ``docs/bundle.md``."""

from edgekit._directories import cache_directory
from edgekit.bundle._bundle import ARCHIVE_SUFFIX, Bundle, GoldenSample, check_destination, pack_bundle, write_bundle
from edgekit.bundle._manifest import (
    FORMAT,
    Artifact,
    FileEntry,
    Manifest,
    OutputMetrics,
    Source,
    TensorBinding,
    Verification,
    Verified,
)
from edgekit.bundle._processing import LABELS, Detections, ImageInput, TopClasses
from edgekit.bundle._signature import Dim, Signature, StatePair, TensorSpec
from edgekit.bundle._storage import atomic_directory, fsync_tree, write_file

__all__ = [
    "ARCHIVE_SUFFIX",
    "FORMAT",
    "LABELS",
    "Artifact",
    "Bundle",
    "Detections",
    "Dim",
    "FileEntry",
    "GoldenSample",
    "ImageInput",
    "Manifest",
    "OutputMetrics",
    "Signature",
    "Source",
    "StatePair",
    "TensorBinding",
    "TensorSpec",
    "TopClasses",
    "Verification",
    "Verified",
    "atomic_directory",
    "cache_directory",
    "check_destination",
    "fsync_tree",
    "pack_bundle",
    "write_bundle",
    "write_file",
]
