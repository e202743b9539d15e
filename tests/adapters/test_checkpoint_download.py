"""Checkpoints from a web address, by a server on this machine."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis_peft.adapters import download
from lavis_peft.adapters.checkpoint import read_checkpoint, save_atomic
from lavis_peft.errors import CheckpointError, DiskFull


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; files named `broken…` break off before their end."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        """Send the file, or its first half."""
        content = source.read()
        self.server.asked.append(self.path)
        outputfile.write(content[: len(content) // 2] if "broken" in self.path else content)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of the folder `served`; `address` is its own, `asked` the paths it was asked for."""
    (tmp_path / "served" / "other").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = partial(Handler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.asked = []
        running.address = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def serve(folder: Path, which: int, name: str = "checkpoint_best.pth") -> str:
    """Put a checkpoint into the server's folder; gives its SHA-256."""
    save_atomic({"which": which}, folder / "served" / name)
    return hashlib.sha256((folder / "served" / name).read_bytes()).hexdigest()


def kept(folder: Path) -> list[Path]:
    return [path for path in (folder / "hub").rglob("*") if path.is_file()]


def test_addresses_are_downloaded_once_each(server: Any, tmp_path: Path) -> None:
    serve(tmp_path, 1)
    serve(tmp_path, 2, "other/checkpoint_best.pth")
    assert read_checkpoint(f"{server.address}/checkpoint_best.pth")["which"] == 1
    # The same file name from elsewhere is another file.
    assert read_checkpoint(f"{server.address}/other/checkpoint_best.pth")["which"] == 2
    (tmp_path / "served" / "checkpoint_best.pth").unlink()
    assert read_checkpoint(f"{server.address}/checkpoint_best.pth")["which"] == 1


@pytest.mark.parametrize("upper", [False, True])
def test_the_file_that_was_asked_for(upper: bool, server: Any, tmp_path: Path) -> None:
    digest = serve(tmp_path, 1)
    address = f"{server.address}/checkpoint_best.pth#sha256={digest.upper() if upper else digest}"
    assert read_checkpoint(address)["which"] == 1
    assert read_checkpoint(address)["which"] == 1
    assert server.asked == ["/checkpoint_best.pth"]


def test_another_file_than_was_asked_for_is_not_kept(server: Any, tmp_path: Path) -> None:
    digest = serve(tmp_path, 1)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(f"{server.address}/checkpoint_best.pth#sha256={'0' * 64}")
    assert str(caught.value) == (
        f"{server.address}/checkpoint_best.pth: not the file that was asked for: its SHA-256 is {digest}, not "
        f"{'0' * 64}; not kept"
    )
    assert kept(tmp_path) == []


def test_a_kept_copy_of_another_content_is_fetched_anew(server: Any, tmp_path: Path) -> None:
    serve(tmp_path, 1)
    read_checkpoint(f"{server.address}/checkpoint_best.pth")
    digest = serve(tmp_path, 2)
    assert read_checkpoint(f"{server.address}/checkpoint_best.pth#sha256={digest}")["which"] == 2
    (copy,) = kept(tmp_path)
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    assert read_checkpoint(f"{server.address}/checkpoint_best.pth#sha256={digest}")["which"] == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize("given", ["", "12", "g" * 64, "0" * 63, "0" * 65])
def test_a_digest_that_is_none(given: str, server: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"a SHA-256 has 64 hexadecimal digits, this one is '{given}'"):
        read_checkpoint(f"{server.address}/checkpoint_best.pth#sha256={given}")
    assert server.asked == []


@pytest.mark.parametrize("mark", ["", "#sha256=" + "0" * 64])
def test_a_download_that_breaks_off_is_not_kept(mark: str, server: Any, tmp_path: Path) -> None:
    serve(tmp_path, 1, "broken.pth")
    with pytest.raises(CheckpointError, match=r"broken\.pth: the download broke off after [\d,]+ of [\d,]+ bytes"):
        read_checkpoint(f"{server.address}/broken.pth{mark}")
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("{server}/nothing.pth", r"/nothing\.pth: can't be downloaded: .*404"),
        ("http://127.0.0.1:1/a.pth", "can't be downloaded: .*refused"),
        ("http://127.0.0.1:no/a.pth", "can't be downloaded: .*port"),
        ("http:///a.pth", "can't be downloaded: .*no host"),
        ("http://a b/c.pth", "can't be downloaded: "),
    ],
)
def test_an_address_with_nothing_behind_it(address: str, reason: str, server: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(address.format(server=server.address))
    assert kept(tmp_path) == []


def test_a_damaged_file_is_named_with_its_copy(server: Any, tmp_path: Path) -> None:
    (tmp_path / "served" / "page.pth").write_text("<html>sign in</html>")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(f"{server.address}/page.pth")
    (copy,) = kept(tmp_path)
    assert str(caught.value).startswith(f"{server.address}/page.pth (kept at {copy}): not a checkpoint file")


def test_no_room_for_a_download(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(address: str, path: Path, wanted: str) -> None:
        raise DiskFull(f"{path}: can't be written")

    serve(tmp_path, 1)
    monkeypatch.setattr(download, "_download", full)
    with pytest.raises(DiskFull):
        read_checkpoint(f"{server.address}/checkpoint_best.pth")


def test_a_local_file_can_be_asked_for_by_its_digest_too(tmp_path: Path) -> None:
    save_atomic({"which": 1}, tmp_path / "a.pth")
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    assert read_checkpoint(f"{tmp_path / 'a.pth'}#sha256={digest}")["which"] == 1
    with pytest.raises(CheckpointError, match=r"a\.pth: not the file that was asked for"):
        read_checkpoint(f"{tmp_path / 'a.pth'}#sha256={'0' * 64}")
