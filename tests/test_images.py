"""Image data sets in the published formats: read completely, validated, and never executed."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jobs.data import images
from jobs.data.images import SOURCES, load_images
from jobs.job import ParamError
from tests.image_files import pictures, write_cifar, write_idx


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_versions_of_a_cifar_archive_hold_the_same_images(tmp_path: Path, name: str) -> None:
    binary = load_images(name, str(write_cifar(tmp_path / "a.tar.gz", kind="binary", name=name)))
    python = load_images(name, str(write_cifar(tmp_path / "b.tar.gz", kind="python", name=name)))
    for one, other in ((binary.x, python.x), (binary.y, python.y), (binary.x_test, python.x_test)):
        np.testing.assert_array_equal(one, other)
    x, y = pictures(60, SOURCES[name].classes, (3, 32, 32), 0)
    np.testing.assert_array_equal(binary.x[:60], x)
    np.testing.assert_array_equal(binary.y[:60], y)
    assert binary.x.shape == ((300 if name == "cifar10" else 60), 3, 32, 32)
    assert binary.x_test.shape == (40, 3, 32, 32)


def test_an_unpacked_archive_is_the_archive(tmp_path: Path) -> None:
    path = write_cifar(tmp_path / "a.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    packed, unpacked = load_images("cifar10", str(path)), load_images("cifar10", str(tmp_path / "unpacked"))
    np.testing.assert_array_equal(packed.x, unpacked.x)
    np.testing.assert_array_equal(packed.y_test, unpacked.y_test)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_hold_their_images(tmp_path: Path, packed: bool) -> None:
    found = load_images("mnist", str(write_idx(tmp_path / "mnist", packed=packed)))
    x, y = pictures(50, 10, (1, 28, 28), 0)
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert found.x_test.shape == (20, 1, 28, 28)


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    path = write_cifar(tmp_path / "a.tar.gz", train=10)
    assert len(load_images("cifar10", str(path)).x) == 50
    path.unlink()
    write_cifar(path, train=20)
    assert len(load_images("cifar10", str(path)).x) == 100


def test_a_damaged_standard_archive_is_not_trained_on(tmp_path: Path) -> None:
    path = write_cifar(tmp_path / "cifar-10-binary.tar.gz")
    with pytest.raises(ParamError, match=r"damaged.*c32a1d4ab5d03f1284b67883e8d87530"):
        load_images("cifar10", str(path))


def test_a_standard_file_of_the_data_folder_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEFRONT_DATA", str(tmp_path))
    write_idx(tmp_path / "mnist")
    with pytest.raises(ParamError, match="damaged"):
        load_images("mnist")


class _Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("attacked"),))


def test_a_pickle_of_an_archive_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "evil"
    folder.mkdir()
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": _Attack(), b"labels": [0]}, protocol=2))
    with pytest.raises(ParamError, match="which no image archive needs"):
        load_images("cifar10", str(folder))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("content", "what"), [(b"not an archive", "cannot be read as cifar10"), (b"", "cannot be read as cifar10")]
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(ParamError, match=what):
        load_images("cifar10", str(tmp_path / "x.tar.gz"))


def test_a_torn_record_is_found(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"\1" * 3000)
    (tmp_path / "test_batch.bin").write_bytes(b"\1" * 3073)
    with pytest.raises(ParamError, match="not a whole number of records"):
        load_images("cifar10", str(tmp_path))


def test_a_label_outside_the_classes_is_found(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1.bin").write_bytes(b"\x0b" * 3073)
    (tmp_path / "test_batch.bin").write_bytes(b"\1" * 3073)
    with pytest.raises(ParamError, match=r"labels outside 0\.\.9"):
        load_images("cifar10", str(tmp_path))


def test_the_message_for_a_missing_archive_names_its_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEFRONT_DATA", str(tmp_path))
    with pytest.raises(ParamError, match="names no file"):
        load_images("cifar10", str(tmp_path / "nowhere.tar.gz"))

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(images.urllib.request, "urlopen", no_network)
    with pytest.raises(ParamError, match=r"cifar-10-binary\.tar\.gz is missing.*put the file there"):
        load_images("cifar10")
    assert not list((tmp_path / "cifar10").iterdir()), "an incomplete download must leave nothing behind"


def test_a_download_is_kept_only_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a real server on this machine, whose files are not the published ones."""
    import dataclasses
    import functools
    import hashlib
    import http.server
    import threading

    served = tmp_path / "served"
    served.mkdir()
    path = write_cifar(served / "cifar-10-binary.tar.gz")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setenv("PHASEFRONT_DATA", str(tmp_path / "data"))
        there = dataclasses.replace(SOURCES["cifar10"], address=address)
        monkeypatch.setitem(images.SOURCES, "cifar10", there)  # type: ignore[arg-type]
        with pytest.raises(ParamError, match="damaged"):
            load_images("cifar10")
        assert not list((tmp_path / "data" / "cifar10").iterdir())
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        right = dataclasses.replace(there, files={"cifar-10-binary.tar.gz": digest})
        monkeypatch.setitem(images.SOURCES, "cifar10", right)  # type: ignore[arg-type]
        assert len(load_images("cifar10").x) == 300
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(load_images("cifar10").x) == 300, "the second time needs no network"
