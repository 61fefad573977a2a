"""Training: options, objective, optimizers, stages, checkpoints and run folders; `recipes/train.py` tells the story."""
