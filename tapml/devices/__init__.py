"""Where kernels run, one file an implementation of the runtime interface."""
