"""The trainers: pre-training and fine-tuning inside the loop of nnU-Net."""
