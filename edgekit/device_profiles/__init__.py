"""Device profiles: claims with sources, one TOML file a device, and the probe that checks them on the device."""

from edgekit.device_profiles._catalogue import list_profiles, load_profile
from edgekit.device_profiles._contradict import contradictions
from edgekit.device_profiles._probe import ENGINE_PACKAGES, probe
from edgekit.device_profiles._profile import ENGINES, PRECISIONS, DeviceProfile, EngineClaim, PrecisionStatus

__all__ = [
    "ENGINES",
    "ENGINE_PACKAGES",
    "PRECISIONS",
    "DeviceProfile",
    "EngineClaim",
    "PrecisionStatus",
    "contradictions",
    "list_profiles",
    "load_profile",
    "probe",
]
