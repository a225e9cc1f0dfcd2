"""The command line: parses, calls a task, prints. No logic lives here, and no heavy import happens before a verb runs."""
