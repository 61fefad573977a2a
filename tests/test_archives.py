"""Archives are unpacked completely or not at all, and unsafe members are named."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from c2f_zoo import create_dataset
from c2f_zoo.data import cub
from c2f_zoo.data.archives import download_file, extract


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, name)
    return path


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class TestExtract:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    def test_tar(self, tmp_path: Path, mode: str) -> None:
        files = [member("top", tarfile.DIRTYPE), member("top/a.txt", data=b"one"), member("./top/b/c.txt", data=b"two")]
        extract(write_tar(tmp_path / "x", *files, mode=mode), tmp_path / "deep" / "out")
        assert content(tmp_path / "deep" / "out") == {"top/a.txt": "one", "top/b/c.txt": "two"}
        assert os.listdir(tmp_path / "deep") == ["out"], "nothing is left beside it"

    def test_zip(self, tmp_path: Path) -> None:
        extract(write_zip(tmp_path / "x", "top/", "top/a.txt", "b.txt"), tmp_path / "out")
        assert content(tmp_path / "out") == {"b.txt": "b.txt", "top/a.txt": "top/a.txt"}

    def test_tar_that_contains_a_zip(self, tmp_path: Path) -> None:
        inner = write_zip(tmp_path / "inner.zip", "a.txt").read_bytes()
        extract(write_tar(tmp_path / "x.tar", member("inner.zip", data=inner), mode="w"), tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["inner.zip"]

    def test_inner_folder(self, tmp_path: Path) -> None:
        archive = write_tar(tmp_path / "x.tgz", member("top/a.txt", data=b"one"), member("readme.txt", data=b"two"))
        extract(archive, tmp_path / "out", inner="top")
        assert content(tmp_path / "out") == {"a.txt": "one"}
        with pytest.raises(ValueError, match=r"x\.tgz has no folder 'bottom'"):
            extract(archive, tmp_path / "other", inner="bottom")
        assert sorted(os.listdir(tmp_path)) == ["out", "x.tgz"]

    def test_permissions_of_a_tar_are_restricted(self, tmp_path: Path) -> None:
        info, data = member("a.txt", data=b"one")
        info.mode = 0o6777
        extract(write_tar(tmp_path / "x.tgz", (info, data)), tmp_path / "out")
        mode = (tmp_path / "out" / "a.txt").stat().st_mode
        assert mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH) == 0

    def test_links_to_files_in_the_archive(self, tmp_path: Path) -> None:
        links = [member("a/soft", tarfile.SYMTYPE, "../b/file"), member("hard", tarfile.LNKTYPE, "b/file")]
        extract(write_tar(tmp_path / "x.tgz", member("b/file", data=b"one"), *links), tmp_path / "out")
        assert content(tmp_path / "out") == {"a/soft": "one", "b/file": "one", "hard": "one"}

    @pytest.mark.parametrize(
        ("bad", "error"),
        [
            (member("/etc/x"), "'/etc/x' is an absolute path or names a drive"),
            (member("//host/x"), "'//host/x' is an absolute path or names a drive"),
            (member("C:/x"), "'C:/x' is an absolute path or names a drive"),
            (member("c:x"), "'c:x' is an absolute path or names a drive"),
            (member("../x"), "'../x' contains '..'"),
            (member("a/../../x"), "'a/../../x' contains '..'"),
            (member(".."), "'..' contains '..'"),
            (member("a\\..\\..\\x"), r"'a\\..\\..\\x' contains a backslash or a null byte"),
            (member("\\x"), r"'\\x' contains a backslash or a null byte"),
            (
                member("l", tarfile.SYMTYPE, "/etc/passwd"),
                "'l' is a link to '/etc/passwd', which is not a file in the archive",
            ),
            (member("l", tarfile.SYMTYPE, "../good"), "'l' is a link to '../good', which is not a file in the archive"),
            (member("a/l", tarfile.SYMTYPE, ".."), "'a/l' is a link to '.', which is not a file in the archive"),
            (member("l", tarfile.SYMTYPE, "folder"), "'l' is a link to 'folder', which is not a file in the archive"),
            (member("l", tarfile.SYMTYPE, "l"), "'l' is a link to 'l', which is not a file in the archive"),
            (
                member("l", tarfile.LNKTYPE, "/etc/passwd"),
                "'l' is a link to '/etc/passwd', which is not a file in the archive",
            ),
            (member("l", tarfile.LNKTYPE, "../x"), "'l' is a link to '../x', which is not a file in the archive"),
            (member("d", tarfile.CHRTYPE), "'d' is not a file, folder or link"),
            (member("d", tarfile.BLKTYPE), "'d' is not a file, folder or link"),
            (member("d", tarfile.FIFOTYPE), "'d' is not a file, folder or link"),
        ],
    )
    def test_unsafe_member_of_a_tar(self, tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], error: str) -> None:
        members = [member("good", data=b"one"), member("folder", tarfile.DIRTYPE), bad]
        archive = write_tar(tmp_path / "x.tgz", *members)
        with pytest.raises(ValueError) as raised:
            extract(archive, tmp_path / "in" / "out")
        assert str(raised.value).splitlines() == [
            f"{archive} has unsafe members and is not unpacked:",
            f"  {error}",
        ]
        assert os.listdir(tmp_path) == ["x.tgz"], "nothing was written"

    def test_chain_of_links_that_leads_outside(self, tmp_path: Path) -> None:
        # "a/b/up" leads to the top folder, so that "a/b/up/../x" is outside although it looks like "a/b/x".
        steps = [member("a/b/up", tarfile.SYMTYPE, "../.."), member("out", tarfile.SYMTYPE, "a/b/up/../x")]
        archive = write_tar(tmp_path / "x.tgz", member("a/b/x", data=b"one"), *steps, member("a/b/up/y", data=b"two"))
        with pytest.raises(ValueError, match=r"'a/b/up' is a link to '\.', which is not a file in the archive"):
            extract(archive, tmp_path / "out")

    def test_all_unsafe_members_are_listed(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "x.zip", "good", "../a", "/b", "c\\d", "D:e")
        with zipfile.ZipFile(archive, "a") as file:
            link = zipfile.ZipInfo("f")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(link, "/etc/passwd")
        data = bytearray(write_zip(tmp_path / "y.zip", "secret").read_bytes())
        with pytest.raises(ValueError) as error:
            extract(archive, tmp_path / "out")
        assert str(error.value).splitlines()[1:] == [
            "  '../a' contains '..'",
            "  '/b' is an absolute path or names a drive",
            r"  'c\\d' contains a backslash or a null byte",
            "  'D:e' is an absolute path or names a drive",
            "  'f' is not a file or folder",
        ]
        data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag "encrypted" in the central directory
        (tmp_path / "y.zip").write_bytes(data)
        with pytest.raises(ValueError, match="'secret' is encrypted"):
            extract(tmp_path / "y.zip", tmp_path / "out")

    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
    def test_damaged_archive_leaves_nothing(self, tmp_path: Path, mode: str) -> None:
        noise = bytes(i * i % 251 for i in range(50_000))
        archive = tmp_path / "x"
        if mode == "zip":
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("a", b"whole")
                file.writestr("b", noise)
            data = bytearray(archive.read_bytes())
            data[30_000] ^= 1
            archive.write_bytes(data)
        else:
            write_tar(archive, member("a", data=b"whole"), member("b", data=noise), mode=mode)
            archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
        with pytest.raises(ValueError, match=r"x is not a tar or zip archive, or is damaged: .*; download it again"):
            extract(archive, tmp_path / "out")
        assert os.listdir(tmp_path) == ["x"]

    def test_not_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "page.html").write_text("<html>not found</html>")
        with pytest.raises(ValueError, match=r"page\.html is not a tar or zip archive, or is damaged"):
            extract(tmp_path / "page.html", tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            extract(tmp_path / "nowhere", tmp_path / "out")

    def test_existing_folder_is_kept(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "x.zip", "a")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        with pytest.raises(FileExistsError, match="out exists; move it away"):
            extract(archive, tmp_path / "out")
        assert os.listdir(tmp_path / "out") == ["mine"]

    def test_disk_space_is_checked_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = write_tar(tmp_path / "x.tgz", member("a", data=bytes(5000)))
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9000, 6000, 3000))
        with pytest.raises(OSError, match=r"unpacks to 5,000 bytes, but .* has only 3,000 bytes free"):
            extract(archive, tmp_path / "out")

    def test_interrupt_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(file: tarfile.TarFile, folder: Path, **options: object) -> None:
            file.extract("a", folder)
            raise KeyboardInterrupt

        archive = write_tar(tmp_path / "x.tgz", member("a", data=b"one"), member("b", data=b"two"))
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(tarfile.TarFile, "extractall", interrupted)
            extract(archive, tmp_path / "out")
        assert os.listdir(tmp_path) == ["x.tgz"]
        extract(archive, tmp_path / "out")
        assert content(tmp_path / "out") == {"a": "one", "b": "two"}

    def test_python_without_the_data_filter(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(tarfile, "data_filter")
        with pytest.raises(RuntimeError, match=r"use Python 3\.10\.12, 3\.11\.4 or later"):
            extract(write_zip(tmp_path / "x.zip", "a"), tmp_path / "out")


class Server:
    """A local web server with its files and a record of requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None  # bytes after which the connection is closed
        self.requests: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                data = server.files.get(self.path)
                if data is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: server.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.httpd.shutdown()
    thread.join()
    server.httpd.server_close()


class TestDownload:
    DATA = bytes(range(256)) * 8000
    MD5 = hashlib.md5(DATA).hexdigest()

    def test_file_is_downloaded_once(self, server: Server, tmp_path: Path) -> None:
        server.files["/x.bin"] = self.DATA
        for _ in range(2):
            download_file(f"{server.url}/x.bin", tmp_path / "new" / "x.bin", self.MD5)
            assert (tmp_path / "new" / "x.bin").read_bytes() == self.DATA
        assert server.requests == ["/x.bin"]
        assert os.listdir(tmp_path / "new") == ["x.bin"]

    def test_file_with_another_checksum_is_replaced(self, server: Server, tmp_path: Path) -> None:
        server.files["/x.bin"] = self.DATA
        (tmp_path / "x.bin").write_bytes(self.DATA[:-1])
        download_file(f"{server.url}/x.bin", tmp_path / "x.bin", self.MD5)
        assert (tmp_path / "x.bin").read_bytes() == self.DATA

    def test_wrong_checksum_leaves_nothing(self, server: Server, tmp_path: Path) -> None:
        server.files["/x.bin"] = b"another"
        found = hashlib.md5(b"another").hexdigest()
        with pytest.raises(ValueError, match=f"{server.url}/x.bin has the MD5 {found}, not the published {self.MD5}"):
            download_file(f"{server.url}/x.bin", tmp_path / "x.bin", self.MD5)
        assert os.listdir(tmp_path) == []

    def test_missing_file(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=f"cannot download {server.url}/x.bin: HTTP Error 404.*or save the file as"):
            download_file(f"{server.url}/x.bin", tmp_path / "x.bin", self.MD5)
        assert os.listdir(tmp_path) == []

    def test_closed_connection(self, server: Server, tmp_path: Path) -> None:
        server.files["/x.bin"], server.cut = self.DATA, 1_500_000
        with pytest.raises(OSError, match=r"cannot download .*/x\.bin: .* closed after 1500000 of 2048000 bytes"):
            download_file(f"{server.url}/x.bin", tmp_path / "x.bin", self.MD5)
        assert os.listdir(tmp_path) == []

    def test_unreachable_server(self, server: Server, tmp_path: Path) -> None:
        with pytest.raises(OSError, match=r"cannot download http://127\.0\.0\.1:1/x\.bin: "):
            download_file("http://127.0.0.1:1/x.bin", tmp_path / "x.bin", self.MD5)


class TestDownloadOfCUB:
    @pytest.fixture
    def published(self, server: Server, cub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
        """Return a server of an archive with the same layout as the published one."""
        archive = cub_folder.parent / "made.tgz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(cub_folder, "CUB_200_2011")
            file.add(cub_folder / "classes.txt", "attributes.txt")
        server.files["/CUB_200_2011.tgz"] = archive.read_bytes()
        monkeypatch.setattr(cub, "URL", f"{server.url}/CUB_200_2011.tgz")
        monkeypatch.setattr(cub, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        return server

    def test_archive_is_downloaded_once(self, published: Server, tmp_path: Path) -> None:
        root = tmp_path / "data"
        train = create_dataset("cub", "train", root=str(root), download=True)
        assert len(train) == 8
        assert train[0][0].size == (50, 40)
        assert len(create_dataset("cub", "test", root=str(root), download=True)) == 4
        assert len(create_dataset("cub", "test", root=str(root))) == 4
        assert published.requests == ["/CUB_200_2011.tgz"]
        assert sorted(os.listdir(root)) == ["CUB_200_2011", "CUB_200_2011.tgz"]

    def test_existing_data_is_used(self, published: Server, cub_folder: Path, tmp_path: Path) -> None:
        assert len(create_dataset("cub", "train", root=str(cub_folder), download=True)) == 8
        (tmp_path / "CUB_200_2011.tgz").write_bytes(published.files["/CUB_200_2011.tgz"])
        assert len(create_dataset("cub", "train", root=str(tmp_path), download=True)) == 8
        assert published.requests == []

    def test_download_after_a_failure(self, published: Server, tmp_path: Path) -> None:
        root, good = tmp_path / "data", published.files["/CUB_200_2011.tgz"]
        published.cut = len(good) // 2
        with pytest.raises(OSError, match="cannot download"):
            create_dataset("cub", "train", root=str(root), download=True)
        published.cut, published.files["/CUB_200_2011.tgz"] = None, good[:-1] + b"x"
        with pytest.raises(ValueError, match=r"has the MD5 .*, not the published"):
            create_dataset("cub", "train", root=str(root), download=True)
        assert os.listdir(root) == []
        published.files["/CUB_200_2011.tgz"] = good
        assert len(create_dataset("cub", "train", root=str(root), download=True)) == 8

    def test_another_folder_of_that_name(self, published: Server, tmp_path: Path) -> None:
        (tmp_path / "CUB_200_2011").mkdir()
        with pytest.raises(
            FileExistsError, match="CUB_200_2011 exists, but is not a CUB-200-2011 folder; move it away"
        ):
            create_dataset("cub", "train", root=str(tmp_path), download=True)
        assert published.requests == []
