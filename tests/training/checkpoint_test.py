"""Checkpoints: bit for bit, on any mesh, and a damaged one says so."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core import config as configs
from research.core.errors import UserError
from research.core.trees import named_leaves
from research.optim import optimizer
from research.parallel import mesh as meshes
from research.training.checkpoint import FOLDER, Checkpoints, Config
from tests import drawn
from tests.contracts import common

ROOT = pathlib.Path(__file__).parent.parent.parent
META = {"step": 0, "config": {"name": "x"}, "batch_size": 4}


def filled(state, seed=0):
  """Random values everywhere: zeros would hide what is not restored."""
  leaves, tree = jax.tree.flatten(state.replace(key=jax.random.key_data(state.key)))
  rng = np.random.default_rng(seed)
  new = [jnp.asarray(rng.normal(size=x.shape) if x.dtype == jnp.float32 else rng.integers(0, 99, x.shape), x.dtype) for x in leaves]
  state = jax.tree.unflatten(tree, new)
  return state.replace(key=jax.random.wrap_key_data(state.key))


def build(**changes):
  objective, model, params, _ = common.build("masked_lm", **changes)
  return model, params, configs.make(optimizer.Config(ema=0.9), 200)


@pytest.fixture(scope="module")
def state():
  _, params, optim = build()
  return filled(common.state(params, optim))


def like(state, sharding=None):
  sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def at(state, step):
  return state.replace(step=jnp.int32(step))


def equal(a, b):
  plain = lambda s: s.replace(key=jax.random.key_data(s.key))
  for (name, x), (_, y) in zip(named_leaves(plain(a)), named_leaves(plain(b))):
    assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), name


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
  """A workdir with checkpoints of steps 2 and 4."""
  folder = tmp_path_factory.mktemp("saved")
  checkpoints = Checkpoints(str(folder), Config(keep=5))
  for step in (2, 4):
    checkpoints.save(filled(at(state, step), step).replace(step=jnp.int32(step)), {**META, "step": step}, loss=1.5)
  checkpoints.close()
  return folder


def test_what_is_restored_is_what_was_saved(saved, state):
  checkpoints = Checkpoints(str(saved))
  assert checkpoints.steps() == [2, 4]
  for step, wanted in ((None, 4), (2, 2), (4, 4)):
    found = checkpoints.restore(like(state), step)
    equal(found, filled(at(state, wanted), wanted).replace(step=jnp.int32(wanted)))
    assert checkpoints.meta(step) == {**META, "step": wanted}
  assert jax.random.key_impl(found.key) == jax.random.key_impl(state.key)
  jax.random.split(found.key)


def test_parameters_without_the_model(saved, state):
  found = Checkpoints(str(saved)).restore_params(2)
  average = optimizer.ema_params(filled(state, 2).opt_state)
  for (name, x), (other, y) in zip(named_leaves(average), named_leaves(found)):
    assert name == other and isinstance(y, np.ndarray)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("axes", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=4, tensor=2)], ids=str)
def test_onto_another_mesh(saved, state, axes):
  model, _, optim = build()
  boxed = drawn.boxed(model)
  shapes = jax.eval_shape(lambda params: common.state(params, optim), nn.unbox(boxed))
  shardings = meshes.state_shardings(boxed, shapes, meshes.make(meshes.Config(**axes)))
  target = jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)
  found = Checkpoints(str(saved)).restore(target)
  equal(found, filled(at(state, 4), 4).replace(step=jnp.int32(4)))
  for (name, x), (_, wanted) in zip(named_leaves(found), named_leaves(target)):
    assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim), name


def test_a_sharded_state_comes_back_onto_one_device(state, tmp_path):
  mesh = meshes.make(meshes.Config())
  spread = jax.device_put(at(state, 1), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
  checkpoints = Checkpoints(str(tmp_path), Config())
  checkpoints.save(spread, META, None)
  checkpoints.close()
  equal(Checkpoints(str(tmp_path)).restore(like(state)), at(state, 1))


def test_which_checkpoints_stay(tmp_path):
  small = common.state({"w": jnp.zeros(2)}, configs.make(optimizer.Config(), 200))
  checkpoints = Checkpoints(str(tmp_path), Config(keep=2, keep_every=4, keep_best=1, steps=(1,)))
  losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 5.0, 7: 4.0, 8: None, 9: 4.5}
  for step, loss in losses.items():
    checkpoints.save(at(small, step), {**META, "step": step}, loss)
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2, 4, 8, 9]  # the one asked for; the best; multiples of 4; the last two
  checkpoints.close()
  assert Checkpoints(str(tmp_path)).steps() == [1, 2, 4, 8, 9]
  again = Checkpoints(str(tmp_path), Config(keep=1, keep_every=None, keep_best=1))  # the best is known again after a restart
  again.save(at(small, 10), META, 9.0)
  again.close()
  assert Checkpoints(str(tmp_path)).steps() == [2, 10]


def test_a_save_that_was_cut_off_is_none(saved, state, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  os.rename(tmp_path / FOLDER / "4", tmp_path / FOLDER / "4.orbax-checkpoint-tmp-17")
  assert Checkpoints(str(tmp_path)).steps() == [2]
  checkpoints = Checkpoints(str(tmp_path), Config(keep=5))
  assert checkpoints.steps() == [2]
  checkpoints.save(at(state, 4), META, None)
  checkpoints.close()
  assert checkpoints.steps() == [2, 4] and sorted(os.listdir(tmp_path / FOLDER)) == ["2", "4"]  # its remains are gone


# --- mistakes ----------------------------------------------------------------------------------------------------------------


def sentence(info):
  text = str(info.value)
  assert "\n" not in text and len(text) < 600, text
  return text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # readers of the other arrays
def test_every_file_that_is_cut_off_is_noticed(saved, state, tmp_path):
  """Whatever file of a checkpoint is cut to half, or emptied: it is restored whole or refused in a sentence, never wrong."""
  wanted = filled(at(state, 4), 4).replace(step=jnp.int32(4))
  files = sorted(path.relative_to(saved) for path in (saved / FOLDER / "4").rglob("*") if path.is_file())
  refused = []
  for i, file in enumerate(files):
    workdir = tmp_path / str(i)
    shutil.copytree(saved, workdir)
    size = os.path.getsize(workdir / file)
    os.truncate(workdir / file, size // 2)
    try:
      checkpoints = Checkpoints(str(workdir), Config(keep=5)) if i % 2 else Checkpoints(str(workdir))  # as training and as evaluation do
      checkpoints.meta()
      found = checkpoints.restore(like(state))
    except UserError as error:
      text = str(error)
      assert os.path.join(str(workdir), FOLDER, "4") in text and "step 2" in text and "\n" not in text, text
      refused.append(str(file))
    else:
      equal(found, wanted)
    shutil.rmtree(workdir)
  assert any("/d/" in name for name in refused) and any("meta" in name for name in refused), refused


def test_a_damaged_checkpoint_names_no_other_where_there_is_none(saved, tmp_path):
  shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / FOLDER / "2")
  os.truncate(tmp_path / FOLDER / "4" / "meta" / "metadata", 3)
  with pytest.raises(UserError, match="there is no other") as info:
    Checkpoints(str(tmp_path)).meta()
  sentence(info)


def test_another_model_is_refused_and_the_parameter_named(saved):
  _, params, optim = build(head_bias=False)
  with pytest.raises(UserError, match=r"another model or optimizer: .*head_mlm/bias.*absent here") as info:
    Checkpoints(str(saved)).restore(like(common.state(params, optim)))
  sentence(info)
  _, params, _ = build()
  with pytest.raises(UserError, match="another model or optimizer: 'opt_state"):
    Checkpoints(str(saved)).restore(like(common.state(params, configs.make(optimizer.Config(), 200))))
  wider = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], x.shape[-1] + 1)), params)
  with pytest.raises(UserError, match=r"'.*' is \(.*\) there and \(.*\) here"):
    Checkpoints(str(saved)).restore(like(common.state(wider, optim)))


def test_no_checkpoint_and_no_such_step(saved, tmp_path, state):
  with pytest.raises(UserError, match="no checkpoints in"):
    Checkpoints(str(tmp_path / "absent"))
  os.makedirs(tmp_path / FOLDER)
  with pytest.raises(UserError, match="no finished checkpoint"):
    Checkpoints(str(tmp_path)).restore(like(state))
  with pytest.raises(UserError, match="no checkpoint of step 3 .* there are 2, 4"):
    Checkpoints(str(saved)).meta(3)


FULL_DISK = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from research.core.errors import UserError
from research.core.types import TrainState
from research.training.checkpoint import Checkpoints, Config

values = np.random.default_rng(0).normal(size=300_000).astype(np.float32)  # does not compress
state = lambda step: TrainState(jnp.int32(step), {"w": jnp.asarray(values) + step}, {}, {}, jax.random.key(0))
checkpoints = Checkpoints(sys.argv[1], Config(keep=5))
checkpoints.save(state(1), {"step": 1}, None)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # from now on no file grows beyond this
try:
  checkpoints.save(state(2), {"step": 2}, None)
  checkpoints.close()
except UserError as error:
  print(f"error: {error}")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = Checkpoints(sys.argv[1])
shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(1))
found = again.restore(shape)
print(again.steps(), int(found.step), bool((found.params["w"] == state(1).params["w"]).all()), flush=True)
import os
os._exit(0)  # orbax's own threads still hold the error
"""


def test_a_full_disk_is_told_and_what_was_saved_before_is_whole(tmp_path):
  done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120,
                        env={**os.environ, "XLA_FLAGS": ""})  # fmt: skip
  lines = done.stdout.splitlines()
  assert len(lines) == 2, (done.stdout, done.stderr[-2000:])
  assert (
    lines[0].startswith("error: checkpoint could not be written to") and "free some space" in lines[0] and "step 1 is whole" in lines[0]
  )
  assert lines[1] == "[1] 1 True"
