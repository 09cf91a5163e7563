"""The one table from the model's logical axes to the axes of the mesh.

Earlier rows win: a mesh axis serves one dimension of an array only. So `embed` splits the parameters over `fsdp`, while an activation,
whose `batch` has taken `fsdp` already, stays whole along `embed`.
"""

RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("data", "fsdp", "expert")),
    ("experts", "expert"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("length", "sequence"),
    ("kv_length", None),  # keys and values that every query of a row sees
    ("head_dim", None),
    ("layers", None),
)
