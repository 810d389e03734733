"""Linux, as a `live.core.system.OperatingSystem`: kernel structures in guest memory, read as tasks."""
