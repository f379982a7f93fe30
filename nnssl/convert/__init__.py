"""From a native download to nnU-Net raw data, and the synthetic data set."""
