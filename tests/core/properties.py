"""How properties are tested: the same examples in every run, however slow the machine, and nothing left on the disk."""

from hypothesis import HealthCheck, settings


def load_profile() -> None:
    """Make it so for this process."""
    settings.register_profile(
        "imagenet-mds",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("imagenet-mds")
