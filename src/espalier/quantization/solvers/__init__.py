"""One file per solver of 1-D k-means."""
