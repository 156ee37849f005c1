"""The foreign suite is run by test_foreign_suite.py, in another place and another process."""

collect_ignore = ["foreign_suite"]
