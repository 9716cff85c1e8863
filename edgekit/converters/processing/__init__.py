"""Pre- and post-processing inside the artifact, for every engine: steps written into the source model's graph before everything else.

`requested` reads the options of a build, `apply` gives the source model with the steps in it. See ``docs/processing.md``.
"""

from edgekit.converters.processing._apply import Processing, Request, apply, requested, write_labels
from edgekit.converters.processing._edit import POST_PREFIX
from edgekit.converters.processing._grammar import parse_class_scores, parse_image_input, parse_nms
from edgekit.converters.processing._pictures import image_of, is_open, read_picture, sample_notes, sample_shape

__all__ = [
    "POST_PREFIX",
    "Processing",
    "Request",
    "apply",
    "image_of",
    "is_open",
    "parse_class_scores",
    "parse_image_input",
    "parse_nms",
    "read_picture",
    "requested",
    "sample_notes",
    "sample_shape",
    "write_labels",
]
