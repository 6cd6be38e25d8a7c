"""How a run is kept: runs, files, machine, training, weights."""
