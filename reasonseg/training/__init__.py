"""Training: stages of a run, fine-tuning on a folder, sharding, validation, `objectives/`."""
