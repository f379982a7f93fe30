"""Who has seen what: the one answer that fine-tuning, pools, studies and probe ask for."""
