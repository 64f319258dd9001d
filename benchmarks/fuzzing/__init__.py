"""What benchmarks/fuzz.py is made of: good data, damage to them, the readers, and the process that is watched."""
