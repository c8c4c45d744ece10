"""Ways to run knowmine: the simulation, and later the kits of a real federation."""
