"""The hospital's side: it sees images and speaks to the network through one door."""

import os

# NumPy starts OpenBLAS's threads as it is imported. Landlock does not hold a thread that is older than
# its rules, and the kernel gives no namespace of its own to a process with several: before any of
# them shuts itself in, processes of this package have one thread.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
