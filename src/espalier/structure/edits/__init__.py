"""Structural edits, one file each."""
