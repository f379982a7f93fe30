"""What a run draws: cases, tissue, places, batches, label budgets, images without labels, pools."""
