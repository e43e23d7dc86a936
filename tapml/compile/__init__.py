"""From an operator to kernels, in worker processes. The only place that knows the compiler."""
