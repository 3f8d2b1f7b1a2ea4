"""What a chapter can be given: how much it does, and the seed of its random numbers."""

from __future__ import annotations

PROFILES = ("smoke", "book", "full")


def check(profile: object, seed: object) -> None:
    """Refuse what no chapter can be run with.

    Raises:
        ValueError: no such profile, or a seed that is no whole number from 0.
    """
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r} (of a parameter, or of AMAML_PROFILE); there are {', '.join(PROFILES)}")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, not {seed!r}")
