"""The hospital's side: it sees images and speaks to the network through one door."""

import os

# NumPy starts OpenBLAS's threads as it is imported. Landlock does not hold a thread that is older than
# its rules, and the kernel gives no namespace of its own to a process with several: until they have
# shut themselves in, a site's processes have one thread. A number in the environment does not undo it.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
