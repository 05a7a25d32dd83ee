"""The disk cache trusts nothing it has not written."""

from __future__ import annotations

from pathlib import Path

import pytest

from thalweg.compiler.cache import DiskCache, FolderRefusedError


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    made = DiskCache(tmp_path / "kernels")
    made.open()
    return made


def test_the_folder_is_closed_to_others(cache: DiskCache) -> None:
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_what_is_stored_is_found(cache: DiskCache) -> None:
    path = cache.store("key", b"library")
    assert cache.find("key") == path
    assert path.read_bytes().startswith(b"library")
    assert [p.name for p in cache.folder.iterdir()] == ["key.so"]


def test_what_is_missing_is_not_found(cache: DiskCache) -> None:
    assert cache.find("key") is None


@pytest.mark.parametrize("damage", [b"", b"foreign", b"x" * 100])
def test_a_damaged_file_is_removed(cache: DiskCache, damage: bytes) -> None:
    cache.store("key", b"library").write_bytes(damage)
    assert cache.find("key") is None
    assert not cache.path("key").exists()


def test_a_truncated_file_is_removed(cache: DiskCache) -> None:
    path = cache.store("key", b"library" * 100)
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.find("key") is None


def test_a_library_of_another_key_is_removed(cache: DiskCache) -> None:
    cache.store("other", b"library").rename(cache.path("key"))
    assert cache.find("key") is None
    assert not cache.path("key").exists()


def test_a_folder_in_the_place_of_a_library_is_none(cache: DiskCache) -> None:
    cache.path("key").mkdir()
    assert cache.find("key") is None
    with pytest.raises(OSError, match="Is a directory"):
        cache.store("key", b"library")
    assert list(cache.folder.iterdir()) == [cache.path("key")]


def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(FolderRefusedError, match="open to other users; say chmod 700"):
        DiskCache(tmp_path).open()


def test_a_foreign_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: -5)
    with pytest.raises(FolderRefusedError, match="belongs to another user"):
        DiskCache(tmp_path).open()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FolderRefusedError, match="Not a directory"):
        DiskCache(file / "kernels").open()


def test_a_failed_write_leaves_nothing(
    cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        cache.store("key", b"library")
    assert list(cache.folder.iterdir()) == []
