"""Factorizations, one file each."""
