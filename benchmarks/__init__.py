"""Figures beside their baselines, one command each; ``python -m benchmarks`` lists them."""
