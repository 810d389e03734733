"""The `pse` command, one file a subcommand."""
