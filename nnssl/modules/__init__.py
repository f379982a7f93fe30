"""Building blocks of objectives; `unet.py` alone knows the insides of nnU-Net's networks."""
