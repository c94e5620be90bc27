"""Times fused_losses against torch eager and torch.compile: ``python -m benchmarks --help``."""
