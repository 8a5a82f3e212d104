"""What `sr4 evaluate` measures; imports core and numpy only."""
