"""Recordings: what was seen of a guest, kept in one file, and seen again."""
