"""One file per entropy coder."""
