"""One case through the whole path: build, load, run, compare; the verdict is passed, refused or failed."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgekit.bundle import Bundle
from edgekit.converters._build import build
from edgekit.converters.conformance._cases import Case, mismatch
from edgekit.errors import EdgeKitError, ModelError, UnsupportedOperatorsError, UsageError

__all__ = ["Verdict", "Word", "judge_case"]

Word = Literal["passed", "refused", "failed"]


@dataclass(frozen=True)
class Verdict:
    """How a case ended.

    Attributes:
        verdict: ``refused`` is an error that says which node or value is in the way, raised before a bundle exists; everything else that
            is not right is ``failed``: a toolchain's own error, a crash, a hang, wrong numbers, those that the proof caught included.
        reason: empty when passed.
        seconds: wall time.
    """

    verdict: Word
    reason: str = ""
    seconds: float = 0.0


def judge_case(case: Case, device: str, precision: str = "fp32") -> Verdict:
    """Build ``case`` for ``device``, run the bundle on the recorded input and compare with the recorded outputs."""
    with tempfile.TemporaryDirectory(prefix="edgekit-conformance-") as folder:
        path, samples = Path(folder) / "case.onnx", Path(folder) / "input.npz"
        path.write_bytes(case.model.SerializeToString())
        np.savez(samples, allow_pickle=False, **case.inputs)
        try:
            # Not isolated: this process is itself one that may crash or hang. A verdict is about this code, so nothing comes from the cache.
            bundle = build(
                path,
                device=device,
                precision=precision,
                calibration=samples,
                output=Path(folder) / "case.edgekit",
                isolate=False,
                cache=False,
                reproducer=False,
            )
            difference = mismatch(case, _run(bundle, case))
        except (UnsupportedOperatorsError, ModelError, UsageError) as exc:
            return Verdict("refused", _line(exc, folder))
        except EdgeKitError as exc:
            return Verdict("failed", _line(exc, folder))
        except Exception as exc:  # noqa: BLE001 - a traceback is a failure like any other, and the run goes on
            return Verdict("failed", f"{type(exc).__name__}: {_line(exc, folder)}")
    return Verdict("failed", difference) if difference else Verdict("passed")


def _line(error: Exception, folder: str) -> str:
    """The message on one line, without the temporary folder's name: equal runs give equal words."""
    return " ".join(str(error).replace(f"{folder}/", "").split())[:400]


def _run(bundle: Bundle, case: Case) -> dict[str, np.ndarray]:
    if bundle.manifest.artifact.engine == "coreml" and platform.system() != "Darwin":
        return _run_reference(bundle, case)
    from edgekit.runtime import load

    with load(bundle.path) as session:
        return dict(session.run(case.inputs))


def _run_reference(bundle: Bundle, case: Case) -> dict[str, np.ndarray]:
    """Core ML runs on Apple's systems only; elsewhere the saved package goes through the reference interpreter."""
    from edgekit.converters.coreml_reference import Interpreter
    from edgekit.runtime.engines._coreml import logical_outputs, native_inputs

    manifest = bundle.manifest
    native = Interpreter(bundle.directory / manifest.artifact.path).run(native_inputs(manifest.artifact, case.inputs))
    return logical_outputs(manifest.artifact, manifest.signature, native)
