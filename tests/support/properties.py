"""Settings of property tests: the same examples in every run, no deadline, and nothing stored on the disk."""

from hypothesis import HealthCheck, settings


def load_profile() -> None:
    """Apply the settings to this process."""
    settings.register_profile(
        "imagenet-mds",
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("imagenet-mds")
