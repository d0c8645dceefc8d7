"""The verbs: one file each, called by `Repository`."""
