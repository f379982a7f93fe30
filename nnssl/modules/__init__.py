"""Parts of networks and tensor tools; `unet` alone knows the insides of a U-Net."""
