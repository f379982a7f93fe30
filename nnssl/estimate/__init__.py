"""What a run will cost: dry steps, memory, hours, read rate."""
