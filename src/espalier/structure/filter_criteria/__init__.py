"""Filter criteria, one file each."""
