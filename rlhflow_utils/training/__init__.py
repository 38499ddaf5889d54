"""TRL's trainers on the profile's settings (chapters 00, 02, 03, 04, 09, 10); the only room that imports TRL."""
