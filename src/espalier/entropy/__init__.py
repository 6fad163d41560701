"""Entropy coding of integer symbols: the contract, and one file per coder."""
