"""The cache folder of this user, below everything that keeps files there: models, weights, kernels, the CPU's programs."""
