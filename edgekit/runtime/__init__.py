"""Bundles at work: engines, sessions and the proof that they answer right here."""

from edgekit.runtime._load import load
from edgekit.runtime._session import Session
from edgekit.runtime._verify import VerifyResult, verify_bundle
from edgekit.runtime.engines import Engine, EngineOptions

__all__ = ["Engine", "EngineOptions", "Session", "VerifyResult", "load", "verify_bundle"]
