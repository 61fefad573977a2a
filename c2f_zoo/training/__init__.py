"""Training: options, objective, optimizers, stages, checkpoints and run folders."""
