"""What a run will cost: hours, memory, disk and read rate, measured by a few dry steps."""
