"""Training: the job, its Trainer, optimizer and schedule, cached features, checkpoints, searches and evaluation."""
