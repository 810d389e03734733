"""From a guest to its events: attach, take steps, hand events on."""
