"""Layouts: files, rules, and errors that name the axis and the remedy."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from ryzjax.errors import LayoutError
from ryzjax.sharding import Layout, Placement


def test_shipped_layouts_resolve_on_eight_devices():
    sizes = {name: dict(Layout.load(name).resolve(8).mesh) for name in ("single", "tp", "tp_dp", "fsdp_tp")}
    assert sizes == {
        "single": {"tensor": 1},
        "tp": {"tensor": 8},
        "tp_dp": {"data": 2, "tensor": 4},
        "fsdp_tp": {"fsdp": 2, "tensor": 4},
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


def test_sizes_that_do_not_divide_name_axis_and_size():
    placement = Placement(Layout.load("tp"))
    with pytest.raises(LayoutError, match=r"ffn=172 does not divide over the 8 devices of mesh axis 'tensor'"):
        placement.spec(("ffn", "embed"), (172, 64))
    # 4 heads of 8: the array's 32 rows would divide, but heads would be cut in half.
    with pytest.raises(LayoutError, match="heads=4"):
        placement.spec(("heads", "embed"), (32, 64), (8, 1))


def test_two_dimensions_on_one_mesh_axis():
    placement = Placement(Layout(name="twice", mesh={"x": 2}, rules={"ffn": "x", "embed": "x"}))
    with pytest.raises(LayoutError, match="two dimensions"):
        placement.spec(("ffn", "embed"), (4, 4))


def test_few_kv_heads_are_replicated_and_copied_in_the_cache():
    placement = Placement(Layout.load("tp"))
    assert placement.spec(("kv_heads", "embed"), (32, 64), (8, 1)) == PartitionSpec(None, None)
    assert placement.kv_replication(4) == 2
    assert placement.kv_replication(16) == 1
    with pytest.raises(LayoutError, match="kv_heads=3"):
        placement.kv_replication(3)
