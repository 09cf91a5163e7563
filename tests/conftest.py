"""Eight simulated devices for every test, no warm cache that could hide a difference, and a compiler in a hurry.

A test runs a program once or twice, so compiling is what takes the time; without the backend's optimizations it takes a quarter of it.
"""

import os

FLAGS = "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
