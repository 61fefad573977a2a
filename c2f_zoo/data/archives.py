"""Downloading archives and unpacking them, without trusting what is in them."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import NamedTuple

from tqdm import tqdm

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_NO_ARCHIVE = (tarfile.ReadError, zipfile.BadZipFile)
_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


def download_file(url: str, path: str | Path, md5: str) -> None:
    """Downloads a file, unless it is there with the right checksum.

    The file appears under its name only when it is whole and its checksum right.

    Args:
        url: where it is.
        path: where to put it; folders that are missing are made.
        md5: its published checksum, 32 hexadecimal digits.

    Raises:
        OSError: the server cannot be reached, lacks the file, or broke off; the message names the URL.
        ValueError: the file that came is not the one with that checksum.
    """
    path = Path(path)
    if path.is_file() and _md5(path) == md5:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        part = Path(scratch, path.name)
        try:
            _fetch(url, part)
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"cannot download {url}: {error}; try again, or put the file at {path} yourself") from error
        found = _md5(part)
        if found != md5:
            raise ValueError(
                f"{url} gave a file with the MD5 {found}, not {md5}: it is not the published one, and was deleted; "
                f"try again, or put the right file at {path}"
            )
        part.replace(path)


def _fetch(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "c2f_zoo"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=total or None, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if file.tell() < total:
            raise ConnectionError(f"the connection broke off after {file.tell()} of {total} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Member(NamedTuple):
    name: str
    kind: str  # "file", "folder", "link" or what else it is
    size: int
    target: str = ""  # of a link, from the top of the archive


def extract(archive: str | Path, folder: str | Path, inner: str = "") -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip archive into a new folder.

    Every member is looked at before anything is written. They are unpacked beside the folder and moved into place at
    the end, so that the folder is there as a whole or not at all.

    Args:
        archive: the file.
        folder: the folder to make.
        inner: a folder in the archive, whose content becomes the new folder's; what lies outside it is dropped.

    Raises:
        FileExistsError: the folder is there already.
        OSError: the disk has too little room.
        ValueError: the file is no archive or is damaged; it lacks `inner`; or it has members with absolute paths, `..`,
            drives or backslashes in them, links to anything but a file in the archive, devices and the like, or
            encrypted ones. All are named.

    Examples:
        >>> import zipfile
        >>> with zipfile.ZipFile("birds.zip", "w") as file:
        ...     file.writestr("birds/readme.txt", "Two birds.")
        >>> extract("birds.zip", "here", inner="birds")
        >>> Path("here", "readme.txt").read_text()
        'Two birds.'
        >>> with zipfile.ZipFile("bad.zip", "w") as file:
        ...     file.writestr("../readme.txt", "Not here.")
        >>> try:
        ...     extract("bad.zip", "there")
        ... except ValueError as error:
        ...     print(error)
        bad.zip is not unpacked:
          '../readme.txt' has '..' in it
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; move it away, or name another folder")
    with _opened(archive) as file:
        members = list(_members(file))
        faults = list(_faults(members))
        if faults:
            raise ValueError("\n  ".join([f"{archive} is not unpacked:", *faults]))
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = sum(member.size for member in members), shutil.disk_usage(folder.parent).free
        if needed > free:
            raise OSError(f"{archive} unpacks to {needed:,} bytes, but {folder.parent} has room for {free:,} only")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
            content = Path(scratch, "content")
            content.mkdir()  # the scratch folder itself is closed to other users
            _unpack(file, content)
            if not (content / inner).is_dir():
                raise ValueError(f"{archive} holds no folder {inner!r}")
            (content / inner).rename(folder)


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    try:
        if zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):  # a tar may hold a zip
            with zipfile.ZipFile(archive) as file:
                yield file
        else:
            with tarfile.open(archive) as file:
                yield file
    except _NO_ARCHIVE as error:
        raise ValueError(f"{archive} is no tar or zip archive, or is damaged: {error}; get it again") from error
    except _DAMAGE as error:
        raise ValueError(f"{archive} is damaged: {error}; get it again") from error


def _members(file: tarfile.TarFile | zipfile.ZipFile) -> Iterator[_Member]:
    if isinstance(file, zipfile.ZipFile):
        for info in file.infolist():
            kind = "folder" if info.is_dir() else "file"
            mode = stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                kind = "encrypted"
            elif mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "no plain file or folder"
            yield _Member(info.filename, kind, info.file_size)
        return
    for member in file.getmembers():
        kind = "file" if member.isreg() else "folder" if member.isdir() else "no file, folder or link"
        if member.issym():
            target = normpath(str(PurePosixPath(member.name).parent / member.linkname))
            yield _Member(member.name, "link", 0, target)
        elif member.islnk():
            yield _Member(member.name, "link", 0, normpath(member.linkname))
        else:
            yield _Member(member.name, kind, member.size)


def _faults(members: list[_Member]) -> Iterator[str]:
    files = {normpath(member.name) for member in members if member.kind == "file"}
    files -= {normpath(member.name) for member in members if member.kind == "link"}
    for member in members:
        parts = re.split(r"[/\\]", member.name)
        if "\\" in member.name or "\0" in member.name:
            yield f"{member.name!r} has a backslash or a zero byte in its name"
        elif member.name.startswith("/") or any(re.match("[A-Za-z]:", part) for part in parts):
            yield f"{member.name!r} is an absolute path, or names a drive"
        elif ".." in parts:
            yield f"{member.name!r} has '..' in it"
        elif member.kind == "link" and member.target not in files:
            # A link to a folder, harmless by itself, could be a step of another link's way out.
            yield f"{member.name!r} is a link to {member.target!r}, which is no file in the archive"
        elif member.kind not in ("file", "folder", "link"):
            yield f"{member.name!r} is {member.kind}"


def _unpack(file: tarfile.TarFile | zipfile.ZipFile, folder: Path) -> None:
    if isinstance(file, tarfile.TarFile) and hasattr(tarfile, "data_filter"):
        file.extractall(folder, filter="data")
    else:
        file.extractall(folder)
