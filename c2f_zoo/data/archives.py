"""Download archives, and unpack untrusted archives."""

from __future__ import annotations

import gzip
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
from pathlib import Path, PurePosixPath
from posixpath import normpath

from torchvision.datasets.utils import calculate_md5, check_integrity
from tqdm import tqdm

from c2f_zoo.paths import expand

_TIMEOUT = 60  # seconds without a byte; torchvision's download_url has no timeout, and falls back to plain http
_BAD_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def download_file(url: str, path: str | Path, md5: str) -> None:
    """Download a file, unless it exists with the right checksum.

    `path` is written only if the download is complete and has the checksum.

    Args:
        url: address of the file.
        path: where to save it; missing folders are created.
        md5: its published checksum, 32 hexadecimal digits.

    Raises:
        OSError: the download failed.
        ValueError: the downloaded file has another checksum.
    """
    path = expand(path)
    if check_integrity(path, md5):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as scratch:
        part = Path(scratch, path.name)
        request = urllib.request.Request(url, headers={"User-Agent": "c2f_zoo"})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, open(part, "wb") as file:
                total = int(response.headers.get("Content-Length") or 0)
                with tqdm.wrapattr(response, "read", total or None, desc=path.name, disable=None) as body:
                    shutil.copyfileobj(body, file)
                if file.tell() < total:
                    raise ConnectionError(f"the connection was closed after {file.tell()} of {total} bytes")
        except (OSError, http.client.HTTPException) as error:
            raise OSError(f"cannot download {url}: {error}; try again, or save the file as {path} yourself") from error
        if (found := calculate_md5(part)) != md5:
            raise ValueError(
                f"{url} has the MD5 {found}, not the published {md5}, and was deleted; try again, or save the "
                f"published file as {path}"
            )
        part.replace(path)


def extract(archive: str | Path, folder: str | Path, inner: str = "") -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive into a new folder.

    Every member is checked before anything is written. The folder is created only if all members are unpacked.

    Args:
        archive: the archive.
        folder: the folder to create.
        inner: unpack only the content of this folder in the archive.

    Raises:
        FileExistsError: the folder exists.
        OSError: there is not enough disk space.
        RuntimeError: this Python's tarfile has no data filter.
        ValueError: the file is not an archive, is damaged, does not contain `inner`, or has unsafe members: absolute
            paths, `..`, drives, backslashes, devices, links to anything but a file in the archive, encrypted files.
            All unsafe members are listed.

    Examples:
        >>> with zipfile.ZipFile("birds.zip", "w") as file:
        ...     file.writestr("birds/readme.txt", "Two birds.")
        >>> extract("birds.zip", "here", inner="birds")
        >>> Path("here", "readme.txt").read_text()
        'Two birds.'
    """
    archive, folder = expand(archive), expand(folder)
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError("unpacking needs tarfile's data filter; use Python 3.10.12, 3.11.4 or later")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away, or choose another folder")
    try:
        is_zip = zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive)  # a tar may contain a zip
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as file:
            _unpack(file, archive, folder, inner)
    except (*_BAD_ARCHIVE, NotImplementedError) as error:  # zipfile raises it for an unknown compression
        raise ValueError(f"{archive} is not a tar or zip archive, or is damaged: {error}; download it again") from error


def _unpack(file: zipfile.ZipFile | tarfile.TarFile, archive: Path, folder: Path, inner: str) -> None:
    members = list(_zip_members(file) if isinstance(file, zipfile.ZipFile) else _tar_members(file))
    errors = [f"{name!r} {error}" for name, _, problem in members for error in [_name_error(name) or problem] if error]
    if errors:
        raise ValueError("\n  ".join([f"{archive} has unsafe members and is not unpacked:", *errors]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = sum(size for _, size, _ in members), shutil.disk_usage(folder.parent).free
    if needed > free:
        raise OSError(f"{archive} unpacks to {needed:,} bytes, but {folder.parent} has only {free:,} bytes free")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
        content = Path(scratch, "content")
        content.mkdir()  # the scratch folder itself is closed to other users
        if isinstance(file, tarfile.TarFile):
            file.extractall(content, filter="data")
        else:
            file.extractall(content)
        if not (content / inner).is_dir():
            raise ValueError(f"{archive} has no folder {inner!r}")
        (content / inner).rename(folder)


def _tar_members(file: tarfile.TarFile) -> Iterator[tuple[str, int, str]]:
    """Yield each member's name, size in bytes, and why its type is unsafe, or "".

    A link must point to a file in the archive. The data filter also allows links to folders, which are unsafe in some
    versions of Python (CVE-2025-4517).
    """
    links = [member for member in file if member.issym() or member.islnk()]
    files = {normpath(member.name) for member in file if member.isreg()} - {normpath(link.name) for link in links}
    for member in file:
        error = "" if member.isreg() or member.isdir() else "is not a file, folder or link"
        if member.issym() or member.islnk():
            start = PurePosixPath(member.name).parent if member.issym() else PurePosixPath()
            target = normpath(str(start / member.linkname))
            error = "" if target in files else f"is a link to {target!r}, which is not a file in the archive"
        yield member.name, member.size, error


def _zip_members(file: zipfile.ZipFile) -> Iterator[tuple[str, int, str]]:
    """Yield each member's name, size in bytes, and why its type is unsafe, or ""."""
    for member in file.infolist():
        is_plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        error = "is encrypted" if member.flag_bits & 1 else "" if is_plain else "is not a file or folder"
        yield member.filename, member.file_size, error


def _name_error(name: str) -> str:
    """Return the reason if a member's name is unsafe on any system, or ""."""
    if "\\" in name or "\0" in name:
        return "contains a backslash or a null byte"
    parts = name.split("/")
    if name.startswith("/") or any(re.match("[A-Za-z]:", part) for part in parts):
        return "is an absolute path or names a drive"
    return "contains '..'" if ".." in parts else ""
