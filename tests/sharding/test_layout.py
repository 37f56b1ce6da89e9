"""Layouts: files, rules, and errors that name the axis and the remedy."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from ryzjax.batch import KVCache
from ryzjax.errors import LayoutError
from ryzjax.sharding import Layout, Placement

SHIPPED = ("single", "tp", "tp_dp", "fsdp_tp", "ep", "ep_dp")


def test_shipped_layouts_resolve_on_eight_devices():
    sizes = {name: dict(Layout.load(name).resolve(8).mesh) for name in SHIPPED}
    assert sizes == {
        "single": {"tensor": 1},
        "tp": {"tensor": 8},
        "tp_dp": {"data": 2, "tensor": 4},
        "fsdp_tp": {"fsdp": 2, "tensor": 4},
        "ep": {"tensor": 8},
        "ep_dp": {"data": 2, "tensor": 4},
    }


def test_own_file(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('[mesh]\nmodel = 2\n[rules]\nffn = "model"\n')
    placement = Placement(Layout.load(str(path)))
    assert placement.mesh.shape == {"model": 2}
    assert placement.mesh.axis_types == (AxisType.Auto,)
    assert placement.spec(("ffn", "embed"), (6, 5)) == PartitionSpec("model", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[mesh]\na = 0\n", ["a=0", "positive"]),
        ("[mesh]\na = -1\nb = -1\n", ["only one"]),
        ("", ["no mesh axes"]),
        ('[mesh]\na = 2\n[rules]\nheds = "a"\n', ["heds", "known", "heads"]),
        ('[mesh]\na = 2\n[rules]\nheads = "b"\n', ["heads = 'b'", "['a']"]),
        ("[mesh]\na = 2\n[extra]\nx = 1\n", ["extra"]),
        ("[mesh\n", ["not valid TOML"]),
    ],
)
def test_bad_files_name_the_mistake(tmp_path: Path, text: str, words: list[str]):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(LayoutError) as error:
        Layout.load(str(path))
    assert all(word in str(error.value) for word in words), error.value


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(LayoutError, match=r"'tpp' not found.*fsdp_tp.*single"):
        Layout.load("tpp")


def test_too_few_devices():
    with pytest.raises(LayoutError, match="needs 16 devices, there are 8"):
        Placement(Layout(name="big", mesh={"tensor": 16}))
    with pytest.raises(LayoutError, match="multiple of 2 devices, there are 3"):
        Placement(Layout.load("tp_dp"), jax.devices()[:3])


def test_sizes_that_do_not_divide_are_split_over_the_part_that_does(caplog: pytest.LogCaptureFixture):
    placement = Placement(Layout.load("tp"))
    assert placement.mesh.shape == {"tensor_0": 2, "tensor_1": 2, "tensor_2": 2}
    with caplog.at_level("INFO", logger="ryzjax"):
        assert placement.spec(("ffn", "embed"), (172, 64)) == PartitionSpec(("tensor_0", "tensor_1"), None)
        assert placement.spec(("ffn", "embed"), (172, 64)) == PartitionSpec(("tensor_0", "tensor_1"), None)
    assert caplog.text.count("ffn=172 is split over 4 of the 8 devices of mesh axis tensor") == 1
    # The array's 224 rows would divide further than its 28 heads, but heads would be cut in half.
    assert placement.spec(("heads", "embed"), (224, 64), (8, 1)) == PartitionSpec(("tensor_0", "tensor_1"), None)
    assert placement.spec(("ffn", "embed"), (175, 64)) == PartitionSpec(None, None)
    six = Placement(Layout(name="six", mesh={"x": 6}, rules={"ffn": "x"}), jax.devices()[:6])
    assert [six.split("ffn", count) for count in (12, 8, 9)] == [6, 2, 1]


def test_two_dimensions_on_one_mesh_axis():
    placement = Placement(Layout(name="twice", mesh={"x": 2}, rules={"ffn": "x", "embed": "x"}))
    with pytest.raises(LayoutError, match="two dimensions"):
        placement.spec(("ffn", "embed"), (4, 4))


def test_query_heads_stay_with_their_kv_heads():
    placement = Placement(Layout.load("tp"))
    assert placement.spec(("kv_heads", "embed"), (32, 64), (8, 1)) == PartitionSpec(("tensor_0", "tensor_1"), None)
    assert placement.query_heads_unit(32, 8) == 1  # one KV head per device
    assert placement.query_heads_unit(16, 4) == 1  # a KV head on two devices, with half of its query heads on each
    assert placement.query_heads_unit(64, 16) == 1
    # 6 KV heads are split in two. 24 query heads could be split in eight, but that would split their groups.
    assert placement.query_heads_unit(24, 6) == 4
    pages, scales = (jax.ShapeDtypeStruct(shape, jnp.int8) for shape in ((2, 3, 6, 8, 4), (2, 3, 6, 8)))
    specs = placement.attention_specs(24, 6, KVCache._make([pages, pages, scales, scales]))
    assert specs.cache.k == specs.cache.v == PartitionSpec(None, None, "tensor_0", None, None)
    assert specs.cache.k_scale == specs.cache.v_scale == PartitionSpec(None, None, "tensor_0", None)
    per_head = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    assert placement.cache_specs(KVCache._make([pages, pages, per_head, None])).k_scale == PartitionSpec(
        None, "tensor_0"
    )
    assert specs.heads == specs.kv_heads == PartitionSpec(None, "tensor_0", None)
