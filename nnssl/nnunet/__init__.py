"""nnU-Net's folders and files: the only room that knows where they lie and what is in them."""
