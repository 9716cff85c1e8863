"""Device profiles: claims with sources, one TOML file a device, and the probe that checks them on the device."""

from edgekit.device_profiles._profile import ENGINES, PRECISIONS, DeviceProfile, EngineClaim, PrecisionStatus

__all__ = ["ENGINES", "PRECISIONS", "DeviceProfile", "EngineClaim", "PrecisionStatus"]
