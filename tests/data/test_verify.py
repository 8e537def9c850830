"""What a re-reading finds."""

import io
import json
import os
import pickle
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path

import pytest

from mdl import pack
from mdl.data.domains import Domain
from mdl.data.shards import ShardImages
from mdl.data.verify import verify_domain
from mdl.errors import UserError


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "own"))


Members = list[tuple[str, bytes]]


def members(shard: Path) -> Members:
    with tarfile.open(shard) as tar:
        return [(of.name, tar.extractfile(of).read()) for of in tar]  # type: ignore[union-attr]


def rewrite(folder: Path, content: Members, name: str = "train-00000.tar") -> None:
    """A shard with other members, whose checksum is made to fit: the worst case."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in content:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (folder / name).write_bytes(buffer.getvalue())
    described = json.loads((folder / "domain.json").read_text())
    for split in described["splits"].values():
        for shard in split["shards"]:
            if shard["file"] == name:
                shard["bytes"] = len(buffer.getvalue())
                shard["sha256"] = sha256(buffer.getvalue()).hexdigest()
    (folder / "domain.json").write_text(json.dumps(described))


def faults(folder: Path) -> str:
    return "\n".join(verify_domain(Domain.read(folder)))


def test_what_was_packed_has_no_fault(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in packed.iterdir():
        if folder.is_dir():
            assert faults(folder) == ""
    pack.main(["verify", str(packed)])
    assert "as packed" in capsys.readouterr().out


def test_a_changed_byte_is_found(own: Path) -> None:
    shard = own / "birds" / "val-00000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"1 faults found:\n.*val-00000.tar does not match its che"):
        pack.main(["verify", str(own)])


def test_a_truncated_or_missing_shard_is_found(own: Path) -> None:
    shard = own / "birds" / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:-3000])
    assert "train-00000.tar has" in faults(own / "birds")
    shard.unlink()
    assert "train-00000.tar is missing" in faults(own / "birds")


def test_parts_of_a_key_in_two_places_are_found(own: Path) -> None:
    content = members(own / "birds" / "train-00000.tar")
    content[1], content[2] = content[2], content[1]
    rewrite(own / "birds", content)
    found = faults(own / "birds")
    assert "train-00000.tar holds the parts of 00000000 in two places" in found
    assert "holds 00000000 elsewhere than its index says" in found


def test_two_samples_of_one_key_are_found(own: Path) -> None:
    content = members(own / "birds" / "train-00000.tar")
    rewrite(own / "birds", [*content, content[-1]])
    assert "train-00000.tar holds two images of 00000089" in faults(own / "birds")


@pytest.mark.parametrize("name", ["a.b.png", "../../escape.png", "00000000.pyd", "00000000.pkl"])
def test_members_that_do_not_belong_are_told_and_never_opened(own: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(own / "exploded"),)

    folder = own / "birds"
    before = ShardImages(Domain.read(folder), "train").read(3)
    rewrite(folder, [*members(folder / "train-00000.tar"), (name, pickle.dumps(Bomb()))])
    assert f"holds {name!r}, which is neither an image nor a label" in faults(folder)
    # a stream reads images by their place, and nothing else
    images = ShardImages(Domain.read(folder), "train")
    assert images.read(3) == before
    assert not (own / "exploded").exists()
    assert not list(own.parent.rglob("escape.png"))


def test_a_label_that_is_not_the_indexs_is_found(own: Path) -> None:
    content = members(own / "birds" / "train-00000.tar")
    place = next(i for i, (name, _) in enumerate(content) if name.endswith(".cls"))
    other = b"1" if content[place][1] != b"1" else b"2"
    rewrite(own / "birds", [*content[:place], (content[place][0], other), *content[place + 1 :]])
    assert "with another label than its index" in faults(own / "birds")


def test_an_image_that_cannot_be_decoded_is_found(own: Path) -> None:
    content = members(own / "birds" / "train-00000.tar")
    place = next(i for i, (name, _) in enumerate(content) if name.endswith(".png"))
    name, data = content[place]
    rewrite(own / "birds", [*content[:place], (name, data[:60] + bytes(len(data) - 60)),
                            *content[place + 1 :]])  # fmt: skip
    assert f"holds {name[:8]}, which cannot be decoded" in faults(own / "birds")


def test_files_that_do_not_belong_are_told(own: Path) -> None:
    (own / "birds" / "model.pkl").write_bytes(b"x")
    assert faults(own / "birds") == "model.pkl is no file of this domain"
