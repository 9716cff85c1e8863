"""Which loaded versions go when memory is short. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Resident", "choose_evictions"]


class Resident(NamedTuple):
    """A loaded version. ``used`` grows with each use; ``held`` ones (requests under way, or part of a rollout) stay."""

    name: str
    version: str
    bytes: int
    used: int
    held: bool


def choose_evictions(residents: Sequence[Resident], needed_bytes: int, quota_bytes: int) -> list[Resident] | None:
    """The least recently used that have to go so that ``needed_bytes`` more fit; ``None`` when that cannot be. A quota of 0 is none."""
    free = quota_bytes - sum(resident.bytes for resident in residents)
    if not quota_bytes or needed_bytes <= free:
        return []
    chosen = []
    for resident in sorted((one for one in residents if not one.held), key=lambda one: one.used):
        chosen.append(resident)
        free += resident.bytes
        if needed_bytes <= free:
            return chosen
    return None
