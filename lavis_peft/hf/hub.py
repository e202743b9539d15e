"""Models on the Hugging Face hub: had from there, and put there."""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lavis_peft.checks import first_line
from lavis_peft.errors import ConfigError

_KINDS = ["*.json", "*.model", "*.txt"]


def snapshot(name: str, key: str) -> Path:
    """The folder of a model on the hub, downloaded if it isn't on this machine.

    Args:
        name: As ``google/flan-t5-xl``.
        key: What the user gave it as, for messages.

    Raises:
        ConfigError: It can't be had.
    """
    from huggingface_hub import snapshot_download

    with _failing(f"{key}: {name!r} is no folder here, and can't be had from the hub"):
        folder = Path(snapshot_download(name, allow_patterns=[*_KINDS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_KINDS, "*.bin"]))
    return folder


def check_upload(repo: str, key: str) -> None:
    """See that something can be uploaded: the repository's name, the token, and that the hub answers.

    Args:
        repo: As ``me/my-adapter``; without an owner it is the token's.
        key: What the user gave it as, for messages.

    Raises:
        ConfigError: It can't.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    with _failing(f"{key} {repo}"):
        validate_repo_id(repo)
    if get_token() is None:
        raise ConfigError(f"{key} {repo}: no token for the hub; run `hf auth login`, or set HF_TOKEN")
    with _failing(f"{key} {repo}: the hub refuses the token, or doesn't answer"):
        _api().whoami()


def upload(folder: Path, repo: str, key: str, without: Sequence[str] = ()) -> str:
    """Upload a folder; the repository is made if need be.

    Args:
        folder: The folder.
        repo: As for `check_upload`.
        key: Likewise.
        without: Names of files to leave out.

    Returns:
        The repository's address.

    Raises:
        ConfigError: It failed; says how to do it by hand.
    """
    excluded = "".join(f" --exclude {name}" for name in without)
    by_hand = f"the folder is written; upload it by `hf upload {repo} {folder} .{excluded}`"
    with _failing(f"{key} {repo}", by_hand):
        url = _api().create_repo(repo, exist_ok=True)
        _api().upload_folder(repo_id=url.repo_id, folder_path=str(folder), ignore_patterns=list(without))
    return str(url)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextmanager
def _failing(what: str, then: str = "") -> Iterator[None]:
    """Turn what the hub's library raises into one sentence."""
    from huggingface_hub.utils import get_session

    # Its own errors are of the first two kinds, those of its compiled transfer of the third. The HTTP client's come
    # through as they are, and which client it is depends on the version.
    client = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    try:
        yield
    except (OSError, ValueError, RuntimeError, client.HTTPError) as error:
        raise ConfigError(f"{what}: {first_line(error)}" + (f"; {then}" if then else "")) from error
