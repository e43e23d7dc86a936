"""Recording what operators do, choosing which calls to keep, storing them, and judging numbers against them."""
