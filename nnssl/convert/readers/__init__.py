"""Readers of image files in every format that is converted."""
