"""One thread for torch and numpy, here and in whatever a test starts: two would wait for each other.

Set before either is imported. These matrices are small: most of the processor time was threads in wait.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
