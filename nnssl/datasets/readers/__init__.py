"""Readers: files of any format become one volume, whole or not at all."""
