"""What every room may use: files, processes, locks, checks of values, gathers over ranks."""
