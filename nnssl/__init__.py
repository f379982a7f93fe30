"""nnSSL: self-supervised pre-training as trainers of an unmodified nnU-Net v2."""

__version__ = "0.1.0"
