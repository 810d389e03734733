"""The package in here is a stranger's: it is installed before its own tests run (`test_third_party`)."""

collect_ignore = ["pse_example"]
