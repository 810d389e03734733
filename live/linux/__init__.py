"""From bytes of guest memory to tasks and processes."""
