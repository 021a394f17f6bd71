"""Stand-ins for public data sets: their file names with a few bytes, archives, and a home."""

import contextlib
import functools
import gzip
import io
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import yaml

from uad.core.patterns import REGISTRY

KINDS = {
    "brats21": ("flair", "t1", "t1ce", "t2", "seg"),
    "mslub": ("T1W", "T1WKS", "T2W", "FLAIR", "consensus_gt", "brainmask"),
}
SUBJECT = {"brats21": "BraTS2021_{:05d}", "mslub": "patient{:02d}"}


def names(layout, numbers, kinds=None):
    """Names of the files of some subjects, as they are in the raw tree."""
    if layout == "ixi":
        sites = ("Guys", "HH", "IOP")
        return [
            f"IXI-{kind}/IXI{i:03d}-{sites[i % 3]}-{i:04d}-{kind}.nii.gz"
            for kind in kinds or ("T1", "T2")
            for i in numbers
        ]
    subjects = [SUBJECT[layout].format(i) for i in numbers]
    return [f"{s}/{s}_{k}.nii.gz" for s in subjects for k in kinds or KINDS[layout]]


def bare(files):
    """Names without their folders, as the archives of IXI have them."""
    return [name.rpartition("/")[2] for name in files]


def image(size=(2, 2, 2), shift=0.0, flip=False, name=""):
    """The bytes of a small image; ``name`` makes them different."""
    return gzip.compress(_nifti(size, shift, flip) + name.encode(), 1, mtime=0)


@functools.cache
def _nifti(size, shift, flip):
    affine = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    affine[0, 3] = shift
    return nib.Nifti1Image(np.ones(size, np.uint8), affine).to_bytes()


def edit_header(path, **fields):
    """Set fields of a compressed file's header byte by byte: nibabel would mend them."""
    content = gzip.decompress(path.read_bytes())
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(gzip.compress(header.binaryblock + content[348:]))


def content_of(name):
    """A small image that is the file's own."""
    return image(name=Path(name).name)


def zip_of(path, files, content=content_of):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.writestr(name, content(name))
    return path


def tar_of(path, files, content=content_of):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name in files:
            data = content(name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def folder_of(root, files, content=content_of):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return root


def tree(root):
    """The files below a folder, without hidden ones."""
    paths = [p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir()]
    return sorted(path for path in paths if not path.startswith("."))


@contextlib.contextmanager
def served(folder):
    """A server with the files of a folder; its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def registry_at(path, url, sizes=False, **checksums):
    """A registry whose files are at another address, without checksums."""
    content = yaml.safe_load(REGISTRY.read_text(encoding="utf-8"))
    for entry in content["datasets"].values():
        for file in [*entry.get("files", []), *entry.get("tables", [])]:
            file["urls"] = [f"{url}/{file['name']}"] if file.get("urls") else []
            file["checksum"] = checksums.get(file["name"])
            file["bytes"] = file.get("bytes") if sizes else None
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
