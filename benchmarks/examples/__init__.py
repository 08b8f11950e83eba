"""The tuner inside other people's tools, a runnable script each: `python -m benchmarks.examples.trainer`, and so on."""
