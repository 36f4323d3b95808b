"""The full-size model on a GPU, with random weights: correctness, time, memory. Run as `python -m benchmarks.gpu`."""
