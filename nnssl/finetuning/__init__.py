"""What fine-tuning takes over and how fast it learns: matching of weights, groups, schedules."""
