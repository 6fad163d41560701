"""One file for each way to make a layer smaller that can be swept."""
