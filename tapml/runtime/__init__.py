"""Running a split model on whatever executes operators: what a model needs when it is shipped, without torch."""
