"""Architectures: the only place that knows registers, page tables and instruction forms."""
