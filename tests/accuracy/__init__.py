"""How exact are the events?  `pse watch --json` against the guest's own record, counted."""
