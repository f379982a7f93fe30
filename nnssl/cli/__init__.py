"""Commands: arguments in, calls of the rooms below, one message when something is wrong."""
