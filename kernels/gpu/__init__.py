"""Triton kernel families, one file each."""
