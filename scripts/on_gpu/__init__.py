"""The parts of `gpu_check`: the data it makes, its trials of a trainer, its timings."""
