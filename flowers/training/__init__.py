"""Training: the job, its Trainer, optimizer and schedule, cached features, checkpoints and resume, searches, evaluation."""
