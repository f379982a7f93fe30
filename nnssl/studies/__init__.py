"""Label-efficiency studies: cells, effects, report."""
