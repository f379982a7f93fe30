"""What frozen features know: ridge Dice, positions, clusters, pictures."""
