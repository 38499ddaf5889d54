"""Text to token ids, forward passes, scores (chapters 03 and 04). Not here: training."""
