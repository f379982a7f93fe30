"""Images without labels, preprocessed beside the training cases."""
