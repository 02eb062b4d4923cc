"""Settings of the tests of the core."""

from tests.core.properties import load_profile

load_profile()
