"""What benchmarks/evidence.py is made of."""
