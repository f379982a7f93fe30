"""Dense targets: a map of cluster numbers beside every image."""
