"""Recording what every operator sees and returns; the run folder; tolerances."""
