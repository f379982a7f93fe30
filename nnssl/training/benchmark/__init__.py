"""What a training step costs: time by phase, waiting for data, memory, beside stock nnU-Net."""
