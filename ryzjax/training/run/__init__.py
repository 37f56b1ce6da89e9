"""One run of training: the loop, its checkpoints, logs, signals and exports."""
