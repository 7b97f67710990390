"""Training of ranking models: continual pre-training, mixed-loss fine-tuning, distillation."""
