"""How much of a study is run: the quick profile for a look, the full one for results, the paper's for its own settings."""

PROFILES = ("quick", "full", "paper")
PAPER_SEEDS = 100  # Table 3: images a prompt
PAPER_BASE_STEPS = 50


def check_profile(profile: str) -> None:
    """Refuse an unknown profile with a ValueError."""
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r} is not one of {', '.join(PROFILES)}")


def seeds_of(profile: str, n: int, *, quick: int, full: int, paper: int = PAPER_SEEDS, least: int = 1) -> range:
    """The seeds of a profile, or the first `n` where n is not 0.

    Raises:
        ValueError: an unknown profile, or fewer seeds than the measure needs.

    >>> seeds_of("quick", 0, quick=10, full=30)
    range(0, 10)
    >>> seeds_of("paper", 0, quick=10, full=30)
    range(0, 100)
    """
    check_profile(profile)
    if n != 0 and n < least:
        raise ValueError(f"n_seeds={n} must be at least {least}, or 0 for the {profile} profile's")
    return range(n or {"quick": quick, "full": full, "paper": paper}[profile])
