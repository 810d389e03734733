"""Output of events, for people and programs: one module per format."""
