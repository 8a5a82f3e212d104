"""Curation: clips to scores, scores and rules to a choice, and a report of why."""
