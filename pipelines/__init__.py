"""What a pipeline is. Pure: no network, disk, clock, task or randomness."""
