"""Hi-Dreamer: discrete hierarchical representations in Atari world models."""
