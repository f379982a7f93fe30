"""The parts of the benchmark of a step: the phases of a step, and the rows of its table."""
