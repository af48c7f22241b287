"""What a run leaves on disk to go on from, or to begin another with: checkpoints, and weights."""
