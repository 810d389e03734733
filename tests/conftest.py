"""Fixtures and settings that all tests share."""

import os

import hypothesis

pytest_plugins = ("tests.guest.fixtures",)

# No deadline: machines are noisy, and no test asserts a time.  The same examples in every run, so that
# what fails in CI fails at home; `HYPOTHESIS_PROFILE=explore` looks for new ones.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=3000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
