"""How good is a judge, how good is a policy (chapters 03 to 06, 09, 10). Not here: plots, training."""
