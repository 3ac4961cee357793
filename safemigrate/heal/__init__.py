"""Migrate on: sweep first, recheck what the run disturbs, retry what failed."""
