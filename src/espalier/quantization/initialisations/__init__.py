"""One file per initialisation of 1-D k-means."""
