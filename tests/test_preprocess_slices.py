"""Tables and the slice store."""

import numpy as np
import pandas as pd
import pytest

from uad.core.errors import DataError
from uad.core.files import read_tsv, write_tsv
from uad.preprocess.slices import (
    eligible_slices,
    names_in,
    read_lesion,
    read_store,
    read_volumes,
    subjects_in,
    training_slices,
    volume_writer,
    write_store,
    write_volumes,
)


def test_tsv_round_trip_keeps_names_and_gaps(tmp_path):
    write_tsv(tmp_path / "t.tsv", pd.DataFrame({"subject": ["001", "NA"], "x": [1.5, None]}))
    table = read_tsv(tmp_path / "t.tsv")
    assert table["subject"].tolist() == ["001", "NA"] and table["x"].isna().tolist() == [
        False,
        True,
    ]


def test_store_round_trip_reads_only_what_is_asked(tmp_path):
    rng = np.random.default_rng(0)
    volumes = rng.random((3, 4, 5, 6)).astype(np.float16)
    lesions = (volumes > 0.9).astype(np.uint8)
    path = tmp_path / "s.safetensors"
    write_store(path, ["a", "b", "c"], zip(volumes, volumes > 0.1, lesions, strict=True))
    assert subjects_in(path) == ["a", "b", "c"]
    part = read_store(path, ["c", "a"])
    np.testing.assert_array_equal(part.volumes, volumes[[2, 0]].astype(np.float32))
    assert part.masks.dtype == part.lesions.dtype == bool
    np.testing.assert_array_equal(read_lesion(path, "c"), part.lesions[0])
    with pytest.raises(DataError, match="no subject 'd'"):
        read_lesion(path, "d")
    with pytest.raises(DataError, match="no subject 'd'"):
        read_store(path, ["d"])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"s\.safetensors: not a readable safetensors file"):
        read_store(path, ["a"])


def test_volumes_are_written_the_same_bytes_and_read_by_role(tmp_path):
    volumes = {"test/b": np.ones((2, 2, 2), np.float16), "val_unhealthy/a": np.zeros((2, 2, 2))}
    write_volumes(tmp_path / "1.safetensors", volumes)
    write_volumes(tmp_path / "2.safetensors", dict(reversed(volumes.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert list(read_volumes(tmp_path / "1.safetensors", "test/")) == ["test/b"]
    assert names_in(tmp_path / "1.safetensors") == ["test/b", "val_unhealthy/a"]
    assert names_in(tmp_path / "1.safetensors", "test/") == ["test/b"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("count", [0, 1, 12])
def test_volume_by_volume_gives_the_bytes_of_the_library(tmp_path, dtype, count):
    rng = np.random.default_rng(0)
    names = [f'test/{"äöü" * (number % 2)}"{number}' for number in range(count)]
    volumes = {name: rng.random((3, 4, 5)).astype(dtype) for name in names}
    write_volumes(tmp_path / "at_once.safetensors", volumes)
    with volume_writer(tmp_path / "one_by_one.safetensors", names, (3, 4, 5), dtype) as write:
        for name in rng.permutation(names):
            write(name, np.asfortranarray(volumes[name].astype(np.float64)))
    one_by_one, at_once = (
        (tmp_path / f"{name}.safetensors").read_bytes() for name in ("one_by_one", "at_once")
    )
    assert one_by_one == at_once


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"test/a": (2, 2, 2)}, "1 volumes are missing, such as test/b"),
        ({"test/a": (2, 2, 2), "test/b": (2, 2, 3)}, r"'test/b' has shape \(2, 2, 3\)"),
        ({"test/c": (2, 2, 2)}, "'test/c' was not announced, or is there already"),
    ],
)
def test_a_file_with_a_wrong_or_missing_volume_never_appears(tmp_path, written, message):
    path = tmp_path / "v.safetensors"
    with (
        pytest.raises(ValueError, match=message),
        volume_writer(path, ["test/a", "test/b"], (2, 2, 2), np.float32) as write,
    ):
        for name, shape in written.items():
            write(name, np.zeros(shape))
    assert not list(tmp_path.iterdir())


def test_volumes_are_read_when_they_are_asked_for(tmp_path):
    path = tmp_path / "v.safetensors"
    write_volumes(path, {"test/a": np.ones((2, 2), np.float16), "test/b": np.zeros((2, 2))})
    volumes = read_volumes(path, "test/")
    assert (list(volumes), len(volumes)) == (["test/a", "test/b"], 2)
    assert volumes["test/a"].dtype == volumes["test/b"].dtype == np.float32
    with pytest.raises(KeyError, match="no volume 'test/c'"):
        volumes["test/c"]
    write_volumes(path, {"test/a": np.full((2, 2), 7.0), "test/b": np.zeros((2, 2))})
    assert (volumes["test/a"] == 7).all()


def test_patients_are_drawn_from_their_stack_or_from_the_slices_of_the_scan(tmp_path):
    rng = np.random.default_rng(0)
    volumes = rng.random((2, 4, 4, 8)).astype(np.float16)
    masks, lesions = np.ones(volumes.shape, np.uint8), np.zeros(volumes.shape, np.uint8)
    lesions[0, 0, 0, :2] = 1
    stacks, brains = volumes[..., :4] / 2, masks[..., :4].copy()
    brains[0, ..., 3] = 0
    path = tmp_path / "s.safetensors"
    write_store(path, "ab", zip(volumes, masks, lesions, stacks, brains, strict=True))
    assert (read_store(path, "ab").volumes == volumes).all()

    def drawn(people="ab", **data):
        return training_slices(path, people, data)

    images, inside, slices = drawn(setting="intra", intra_slices="whole_brain_stack")
    assert (images == stacks).all() and (inside == brains).all() and images.dtype == np.float32
    assert [part.tolist() for part in slices] == [[0, 1, 2], [0, 1, 2, 3]]
    images, _, slices = drawn(setting="intra", intra_slices="central_stack")
    assert (images == volumes).all()
    assert [part.tolist() for part in slices] == [[3, 4, 5, 6], [2, 3, 4, 5]]
    scaled, _, slices = drawn(setting="intra", intra_slices="all", intra_scaling="stack")
    for number, part in enumerate(slices):
        values = np.sort(scaled[number][..., part], axis=None)
        assert (values[0], values[-1]) == (0, 1)
    assert len(drawn(setting="cross")[2][0]) == 8
    # the authors' central stack: half of the depth, across the removed slab
    slab = np.zeros((1, 2, 2, 10), bool)
    slab[0, 0, 0, 3:6] = True
    found = eligible_slices(slab, tumour_free=True, central=True)
    assert found[0].tolist() == [1, 2, 6, 7, 8]
    brains[1], lesions[1] = 0, 1
    write_store(path, "ab", zip(volumes, masks, lesions, stacks, brains, strict=True))
    for choice in ("whole_brain_stack", "central_stack", "all"):
        with pytest.raises(DataError, match="b has no slice without a lesion; exclude the subject"):
            drawn(setting="intra", intra_slices=choice)
