"""Running a study: the grid of cells, here or through Slurm, and what became of each."""
