"""Things to tune: small networks trained on real and synthetic data, and an oracle whose optimum is known exactly."""
