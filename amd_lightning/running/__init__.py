"""One run from its configuration to what it leaves behind: directory, processes, resuming, results."""
