"""Tests of symbols/: synthetic kernels, then real ones."""
