"""Pruning schedules, one file each."""
