"""Recordings: a guest's events and the memory that they were read from, in one file; written and replayed."""
