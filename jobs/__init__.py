"""What a job is and does: its spec, events, dataset, training, checkpoints. Knows no queue."""
