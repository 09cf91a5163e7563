"""Options of the compiler for tests: in a hurry, for programs that run once or twice, and as runs are compiled."""

from importlib.metadata import version

_OLD = tuple(map(int, version("jax").split(".")[:2])) < (0, 11)  # later ones do not let choose how loops are fused on a CPU
QUICK = {"xla_backend_optimization_level": 0, **({"xla_cpu_use_fusion_emitters": False} if _OLD else {})}
FULL = {"xla_backend_optimization_level": 3, **({"xla_cpu_use_fusion_emitters": True} if _OLD else {})}
FLAGS = [f"--{name}={str(value).lower()}" for name, value in QUICK.items()]
