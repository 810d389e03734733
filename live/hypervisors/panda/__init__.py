"""A guest that runs in PANDA (panda.re), in this very process."""
