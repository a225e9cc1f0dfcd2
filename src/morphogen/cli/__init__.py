"""The command line: parses, calls a task, prints. No logic, and no heavy import before a verb runs."""
