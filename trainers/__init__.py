"""How a ranking model is made: continual pre-training, mixed-loss fine-tuning, distillation."""
