"""What Algorithm 1 does between two trainings (chapters 07 to 09). Not here: judging a policy."""
