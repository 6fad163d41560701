"""Grids, one file each."""
