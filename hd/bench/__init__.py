"""Side-by-side timings and their opponents."""
