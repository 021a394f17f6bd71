"""Archives, good and bad."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uad.core.errors import DataError
from uad.data import disk, unpack
from uad.data.disk import staging
from uad.data.unpack import extract, names_in

BODY = hashlib.sha256(b"seed").digest() * 2200
FILES = {"top/a.nii.gz": BODY[:70_000], "top/sub/b.nii.gz": b"b" * 100, "top/readme.txt": b"hello"}


def packed(path, files):
    """A tar archive (compressed by its suffix); values are bytes or TarInfo."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if info is not content:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info is not content else None)
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def special(kind, target=""):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, target
    return info


def images(name, _):
    return Path(name).as_posix() if name.endswith((".nii", ".nii.gz")) else None


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_selected_files_come_out(tmp_path, name):
    archive = (zipped if name.endswith("zip") else packed)(tmp_path / name, FILES)
    got = extract(archive, tmp_path / "raw", images)
    assert got == {n: tmp_path / "raw" / n for n in ("top/a.nii.gz", "top/sub/b.nii.gz")}
    assert tree(tmp_path / "raw") == {name: FILES[name] for name in got}
    assert names_in(archive, 2) == list(FILES)[:2]


def test_an_archive_in_an_archive(tmp_path):
    inner = packed(tmp_path / "inner.tar", FILES).read_bytes()
    both = {"data/inner.tar": inner, "other.tar": b"not a tar"}
    archive = zipped(tmp_path / "archive.zip", both)
    got = extract(archive, tmp_path / "raw", images, nested=r".*inner\.tar")
    assert set(got) == {"top/a.nii.gz", "top/sub/b.nii.gz"}
    cut = zipped(tmp_path / "cut.zip", {"inner.tar": inner[:40_000]})
    with pytest.raises(DataError, match="truncated or damaged"):
        extract(cut, tmp_path / "other", images, nested=r".*inner\.tar")


# --- archives that are refused


def cut(place):
    return lambda content: content[:place]


def flip(place):
    """One byte of the content changed."""
    return lambda c: bytes(b ^ 0xFF * (i == place % len(c)) for i, b in enumerate(c))


def made(pack, name, files, change=lambda content: content):
    """What makes an archive and spoils it."""

    def make(folder):
        path = pack(folder / name, files)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def tar_of(files, change=lambda content: content, name="x.tar"):
    return made(packed, name, files, change)


def zip_of(files, change=lambda content: content):
    return made(zipped, "x.zip", files, change)


def zip_link():
    info = zipfile.ZipInfo("a.nii")
    info.external_attr = 0o120777 << 16
    return zip_of({info: "/etc/passwd"})


OUT, ABSOLUTE = "points out of the folder", "has an absolute path"
DAMAGED, LINK = "truncated or damaged, or no tar or zip archive", "is a link out of the folder"
BAD = {
    "dots": (tar_of({"../out.nii": b"x"}), rf"unsafe archive: member '../out.nii' {OUT}"),
    "dots in a file that is not selected": (tar_of({"a.nii": b"a", "../readme": b"x"}), OUT),
    "absolute": (tar_of({"/tmp/out.nii": b"x"}), ABSOLUTE),
    "symlink": (tar_of({"a": special(tarfile.SYMTYPE, "../.."), "a/b.nii": b"x"}), LINK),
    "absolute symlink": (tar_of({"a": special(tarfile.SYMTYPE, "/etc/passwd")}), LINK),
    "hard link": (tar_of({"a": special(tarfile.LNKTYPE, "../../secret")}), LINK),
    "link inside": (
        tar_of({"a.nii": b"a", "b.nii": special(tarfile.SYMTYPE, "a.nii")}),
        "is a link, not a file",
    ),
    "device": (tar_of({"a": special(tarfile.CHRTYPE)}), "is a device or a pipe"),
    "zip dots": (zip_of({"../out.nii": b"x"}), OUT),
    "zip drive": (zip_of({"C:/out.nii": b"x"}), ABSOLUTE),
    "zip backslash": (zip_of({"..\\out.nii": b"x"}), OUT),
    "zip link": (zip_link(), "is a link"),
    "cut tar": (tar_of(FILES, cut(40_000)), DAMAGED),
    "cut between members": (tar_of(FILES, cut(512 + 70_144)), DAMAGED),
    "damaged header": (tar_of(FILES, flip(512 + 70_144 + 10)), DAMAGED),
    "cut tar.gz": (tar_of(FILES, cut(300), "x.tar.gz"), DAMAGED),
    "wrong sum in tar.gz": (tar_of(FILES, flip(-5), "x.tar.gz"), DAMAGED),
    "cut zip": (zip_of(FILES, cut(-30)), DAMAGED),
    "damaged zip": (zip_of(FILES, flip(60)), DAMAGED),
    "page": (tar_of({}, lambda _: b"<!DOCTYPE html><p>log in"), DAMAGED),
    "empty": (tar_of({}, lambda _: b""), DAMAGED),
    "two of one name": (tar_of({"a.nii": b"a", "./a.nii": b"b"}), "are both a.nii"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_archive_is_one_message_and_leaves_nothing(tmp_path, case):
    (tmp_path / "inner").mkdir()
    make, message = BAD[case]
    archive = make(tmp_path / "inner")
    with (
        pytest.raises(DataError, match=message) as error,
        staging(tmp_path / "inner", "raw") as folder,
    ):
        extract(archive, folder, images)
    assert str(archive) in str(error.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", archive.name]


@pytest.mark.parametrize("make", [packed, zipped])
def test_unpacking_checks_the_room_and_survives_a_full_disk(tmp_path, monkeypatch, make):
    archive = make(tmp_path / "x", FILES)
    with monkeypatch.context() as patch:
        usage = disk.shutil.disk_usage("/")
        patch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=50_000))
        with pytest.raises(DataError, match="needs 70 kB, but only 50 kB are free"):
            extract(archive, tmp_path / "raw", images)

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = open
    opened = lambda path, mode, **_: Full(path, mode) if mode == "wb" else real(path, mode)  # noqa: E731
    monkeypatch.setattr(unpack, "open", opened, raising=False)
    with pytest.raises(DataError, match="the disk is full"):
        extract(archive, tmp_path / "raw", images)


def test_what_a_killed_process_left_is_swept(tmp_path):
    with staging(tmp_path, "raw") as folder:
        dead = folder.with_name(folder.name.replace(str(os.getpid()), "1"))
    (dead / "new").mkdir(parents=True)
    with staging(tmp_path, "raw") as folder:
        assert list(tmp_path.iterdir()) == [folder]
    assert not list(tmp_path.iterdir())


PARTS = st.lists(
    st.sampled_from(["..", ".", "a", "b", "", "~", "c:", "\\.."]), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(parts=PARTS, absolute=st.booleans(), link=st.sampled_from([None, "..", "a", "/tmp"]))
def test_nothing_is_ever_written_outside(tmp_path_factory, parts, absolute, link):
    folder = tmp_path_factory.mktemp("x")
    name = ("/" if absolute else "") + "/".join([*parts, "f.nii"])
    links = {"a": special(tarfile.SYMTYPE, link)} if link else {}
    archive = packed(folder / "x.tar", {**links, name: b"x"})
    with contextlib.suppress(DataError):
        extract(archive, folder / "in" / "raw", images)
    assert {p.name for p in folder.iterdir()} <= {"x.tar", "in"}
    assert {p.name for p in (folder / "in").iterdir()} <= {"raw"}
