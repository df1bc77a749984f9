"""Storage: the format of checkpoints, with checksums."""
