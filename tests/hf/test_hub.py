"""Uploading to a hub on this machine, spoken to by the real huggingface_hub client in its own process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_the_test"  # the server's, see server.py
UPLOAD = """
import sys
from pathlib import Path
from lavis_peft.errors import UserError
from lavis_peft.hf.hub import check_upload, upload
try:
    check_upload(sys.argv[2], "--push-to-hub")
    print(upload(Path(sys.argv[1]), sys.argv[2], "--push-to-hub", ["run.yaml"]))
except UserError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an export writes, as far as an upload cares."""
    part = tmp_path / "exported" / "qformer"
    part.mkdir(parents=True)
    (part / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (part / "adapter_config.json").write_text("{}")
    (part.parent / "README.md").write_text("---\nlibrary_name: peft\n---\n# An adapter\n")
    (part.parent / "run.yaml").write_text("model: {pretrained: /of/this/machine}\n")
    return part.parent


def upload(folder: Path, repo: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE", "HUGGINGFACE"))
    }
    # The other way of uploading large files, Xet's, is compiled code that wants a server of its own.
    fixed = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(home)}
    environment = {**kept, **fixed, **environment}
    arguments = [sys.executable, "-c", UPLOAD, str(folder), repo]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_an_upload_arrives_file_by_file_without_the_run_config(hub: Any, folder: Path, tmp_path: Path) -> None:
    done = upload(folder, "me/mine", tmp_path / "home", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/me/mine"
    assert hub.repositories == {"me/mine"}
    expected = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.yaml"
    }
    assert hub.files == expected
    assert list(hub.large.values()) == [expected["qformer/adapter_model.safetensors"]]


@pytest.mark.parametrize(
    ("repo", "environment", "says"),
    [
        ("a/b/c", {"HF_TOKEN": TOKEN}, "--push-to-hub a/b/c: Repo id must be"),
        ("me/mine", {}, "no token for the hub; run `hf auth login`"),
        ("me/mine", {"HF_TOKEN": "hf_wrong"}, "the hub refuses the token, or doesn't answer"),
        ("me/mine", {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub refuses the token, or doesn't"),
        ("me/mine", {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}, "offline mode"),
    ],
    ids=["name", "no-token", "wrong-token", "no-network", "offline"],
)
def test_what_stands_against_an_upload_is_said_before_it(
    hub: Any, folder: Path, tmp_path: Path, repo: str, environment: dict[str, str], says: str
) -> None:
    done = upload(folder, repo, tmp_path / "home", **{"HF_ENDPOINT": hub.address, **environment})
    assert done.returncode == 1
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not hub.repositories and not hub.files


def test_a_failed_upload_says_how_to_go_on(hub: Any, folder: Path, tmp_path: Path) -> None:
    hub.full = True
    done = upload(folder, "me/mine", tmp_path / "home", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN)
    assert done.returncode == 1
    assert f"hf upload me/mine {folder} . --exclude run.yaml" in done.stderr and "Traceback" not in done.stderr
