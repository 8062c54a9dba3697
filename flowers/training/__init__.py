"""The training loop and all that makes it exact: recipe, checkpoints, preemption."""
