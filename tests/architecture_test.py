"""The floors and walls of the house: a file imports only downwards."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "research"
FLOORS = [{"core"}, {"model", "data", "parallel", "optim"}, {"objectives", "decode", "hf"}, {"evals"}, {"training"}, {"studies"}]
LIGHT = {"core", "model", "objectives", "optim", "decode"}  # need nothing but jax, flax, optax, numpy
LIGHT_LIBRARIES = {"jax", "flax", "optax", "numpy", "absl"}


def files():
  return sorted(PACKAGE.rglob("*.py"))


def module(path):
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path, top_level=False):
  """Full names of what a file imports; with `top_level`, only what importing it imports."""
  tree = ast.parse(path.read_text())
  nodes = [n for n in tree.body if not _type_checking(n)] if top_level else list(ast.walk(tree))
  found = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are written in full"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def _type_checking(node):
  return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def inside(names):
  known = {module(path) for path in files()}
  for name in names:
    if name in known:
      yield name
    elif name.rpartition(".")[0] in known:
      yield name.rpartition(".")[0]


def floor(name):
  parts = name.split(".")
  if len(parts) < 3 and not (PACKAGE / parts[-1]).is_dir():
    return len(FLOORS)  # a command
  return next((i for i, names in enumerate(FLOORS) if parts[1] in names), None)


def test_imports_go_downwards():
  for path in files():
    name = module(path)
    if name == "research":
      continue
    here = floor(name)
    assert here is not None, f"{name}: on no floor; name its folder in FLOORS"
    for other in inside(imports(path)):
      if other == "research":
        continue
      there = floor(other)
      same_folder = name.split(".")[1] == other.split(".")[1] and here < len(FLOORS)
      assert there < here or same_folder, f"{name} imports {other}, which is not below it"


def test_members_of_a_family_never_import_each_other():
  for family in ("objectives", "data.sources", "model.position", "model.ffn"):
    folder = PACKAGE / family.replace(".", "/")
    members = {module(p) for p in folder.glob("*.py") if "\nclass Config" in p.read_text()}
    for path in folder.glob("*.py"):
      if module(path) in members:
        assert not members & set(inside(imports(path))), f"{module(path)} imports another member of its family"


def test_walls():
  for path in files():
    name, seen = module(path), imports(path)
    top = name.split(".")[1] if "." in name else ""
    packages = {n.split(".")[1] for n in inside(seen) if "." in n}
    if top == "data":
      assert "model" not in packages, f"{name}: data knows no model"
    if top == "model":
      assert not packages & {"objectives", "parallel"}, f"{name}: the model knows no objective and no mesh"
    if top == "objectives":
      models = {n for n in inside(seen) if n.startswith("research.model")}
      assert models <= {"research.model.inputs", "research.model.layers"}, f"{name}: objectives know model/inputs and receive apply"
    assert not any(n.split(".")[0] in ("configs", "experiments") for n in seen), f"{name}: the package knows no recipe"


def test_no_cycles():
  graph = {module(p): set(inside(imports(p, top_level=True))) - {module(p)} for p in files()}
  done, path = set(), []

  def visit(name):
    assert name not in path, f"import cycle: {' -> '.join([*path[path.index(name) :], name])}"
    if name in done:
      return
    path.append(name)
    for other in graph.get(name, ()):
      visit(other)
    path.pop()
    done.add(name)

  for name in graph:
    visit(name)


def test_the_numerical_heart_imports_jax_alone():
  import sys

  for path in files():
    name = module(path)
    top = name.split(".")[1] if "." in name else ""
    if top in LIGHT or name == "research.training.step":
      for other in imports(path, top_level=True):
        library = other.split(".")[0]
        assert library in LIGHT_LIBRARIES | {"research"} or library in sys.stdlib_module_names, f"{name} imports {library} at import time"
      deeper = {o for o in inside(imports(path, top_level=True)) if o.split(".")[1] == "data"} if "." in name else set()
      assert not deeper, f"{name} imports {deeper}"


def test_no_tensorflow():
  for path in files():
    assert not any(n.split(".")[0] == "tensorflow" for n in imports(path)), f"{module(path)} imports TensorFlow"
