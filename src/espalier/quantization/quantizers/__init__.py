"""One file per quantizer."""
