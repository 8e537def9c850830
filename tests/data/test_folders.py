"""Folders of images, laid out in the ways that people do."""

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from mdl import pack
from mdl.data.domains import Domain
from mdl.data.folders import read_folders
from mdl.errors import UserError


def write_classes(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = (i % 256, label * 20 + seed, i // 256)
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{i}.png")


def splits_of(root: Path) -> dict[str, str]:
    """Image file below its domain -> split."""
    (domain,) = read_folders(root)
    return {
        str(image.file.relative_to(root)): split
        for split, images in domain.images.items()
        for image in images
    }


def test_folders_without_splits_are_split_by_hash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "in" / "pets", {"cat": 300, "dog": 300})
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    assert "pets: no split folders, split by hash: 15% val, 15% test" in capsys.readouterr().out
    splits = Domain.read(tmp_path / "out" / "pets").splits
    assert sum(split.images for split in splits.values()) == 600
    for name, part in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        for count in splits[name].images_per_class:
            assert count == pytest.approx(300 * part, abs=25)


def test_a_split_by_hash_depends_on_the_file_alone(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 60, "dog": 60})
    before = splits_of(tmp_path)
    copy = tmp_path / "pets" / "dog" / "copy.png"
    copy.write_bytes((tmp_path / "pets" / "cat" / "7.png").read_bytes())
    write_classes(tmp_path / "pets", {"eel": 60}, seed=90)
    after = splits_of(tmp_path)
    assert {file: after[file] for file in before} == before
    assert after["pets/dog/copy.png"] == before["pets/cat/7.png"]  # no copy crosses splits


def test_a_class_that_no_training_image_falls_to_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 60})
    held_out = next(f for f, split in splits_of(tmp_path).items() if split == "test")
    (tmp_path / "pets" / "dog").mkdir()
    (tmp_path / held_out).rename(tmp_path / "pets" / "dog" / "only.png")
    with pytest.raises(UserError, match="Class 'dog' of domain 'pets' has too few images"):
        read_folders(tmp_path)


def test_one_domains_classes_are_not_taken_for_domains(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets", {"cat": 3})
    with pytest.raises(UserError, match="holds the classes of one domain; expected a folder of"):
        read_folders(tmp_path / "pets")


def test_names_in_any_script_are_kept(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "flora" / "train", {"Gänseblümchen": 4, "薔薇": 4})
    write_classes(tmp_path / "in" / "flora" / "val", {"薔薇": 2})
    (tmp_path / "in" / "flora" / "val" / "薔薇" / "0.png").rename(
        tmp_path / "in" / "flora" / "val" / "薔薇" / "葉っぱ.png"
    )
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    domain = Domain.read(tmp_path / "out" / "flora")
    assert domain.classes == ("Gänseblümchen", "薔薇")
    assert domain.splits["val"].images_per_class == (0, 2)
    pack.main(["info", str(tmp_path / "out")])
    pack.main(["verify", str(tmp_path / "out")])


def test_two_forms_of_one_accent_are_one_class(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        write_classes(tmp_path / "d" / split, {unicodedata.normalize(form, "café"): 3})
    (domain,) = read_folders(tmp_path)
    assert domain.classes == ("café",)
    assert [len(images) for images in domain.images.values()] == [3, 3]
    write_classes(tmp_path / "d" / "train", {unicodedata.normalize("NFD", "café"): 3})
    with pytest.raises(UserError, match="two folders of the class 'café'"):
        read_folders(tmp_path)


def test_a_class_that_only_a_later_split_has_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "d" / "train", {"a": 3, "b": 3})
    write_classes(tmp_path / "d" / "val", {"a": 3})
    assert [len(of) for of in read_folders(tmp_path)[0].images.values()] == [6, 3]
    write_classes(tmp_path / "d" / "test", {"c": 3})
    with pytest.raises(UserError, match=r"test/c is a class that the training split lacks"):
        read_folders(tmp_path)


def test_what_lies_beside_the_splits_is_told_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "in" / "d" / "train", {"a": 3, "b": 3})
    write_classes(tmp_path / "in" / "d" / "originals", {"a": 3})
    (tmp_path / "in" / "d" / "test").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "d" / "test" / "loose.png")
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "d: left out: 1 folder 'originals', which is no split" in said
    assert "d: left out: 1 images in test/ itself, in no class folder" in said
    write_classes(tmp_path / "in" / "d" / "valid", {"a": 3})
    with pytest.raises(UserError, match=r"d/valid is no split that is known; .* Rename it to val"):
        read_folders(tmp_path / "in")


def test_names_with_odd_spaces_stay_as_they_are(tmp_path: Path) -> None:
    names = ("red  fox", "tab\tbed", "東京\u3000タワー")
    write_classes(tmp_path / "in" / "d" / "train", dict.fromkeys(names, 2))
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    assert set(Domain.read(tmp_path / "out" / "d").classes) == set(names)


def test_packing_into_the_images_or_over_something_else_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "d" / "train", {"a": 3})
    for out in (tmp_path / "in", tmp_path / "in" / "packed"):
        with pytest.raises(UserError, match="lies in DIR"):
            pack.main(["folders", str(tmp_path / "in"), str(out)])
    (tmp_path / "out" / "d").mkdir(parents=True)
    with pytest.raises(UserError, match="is there and is no packed domain"):
        pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])


def test_other_images_under_a_packed_name_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "d" / "train", {"a": 3})
    arguments = ["folders", str(tmp_path / "in"), str(tmp_path / "out")]
    pack.main(arguments)
    pack.main(arguments)
    with pytest.raises(UserError, match="--size was 72, now is 48. Remove"):
        pack.main([*arguments, "--size", "48"])
    with pytest.raises(UserError, match="flip was True, now is False. Remove"):
        pack.main([*arguments, "--no-flip", "d"])
    write_classes(tmp_path / "in" / "d" / "train", {"b": 3})
    with pytest.raises(UserError, match="train was 3, now is 6. Remove"):
        pack.main(arguments)


def test_what_a_domain_lacks_is_said_when_it_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "in" / "d" / "train", {"a": 3})
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "d has no val split: a search does without, a retraining does not. To add one" in said
    assert "d has no test split: a retraining gives no test score of it" in said
    assert "d has one class: every answer is right" in said
    for command in ("verify", "info"):
        with pytest.raises(UserError, match="reads a folder; .* is an address"):
            pack.main([command, "https://example.org/data"])
        with pytest.raises(UserError, match="is one domain; expected a folder of domains"):
            pack.main([command, str(tmp_path / "out" / "d")])


def test_hidden_files_and_a_stray_picture_are_no_images(tmp_path: Path) -> None:
    """Some systems lay a hidden file beside each image, named as it is."""
    for split in ("train", "val", "test"):
        write_classes(tmp_path / "pets" / split, {"cat": 4, "dog": 3})
    (tmp_path / "pets" / "train" / "cat" / "._0.png").write_bytes(b"of the system")
    (tmp_path / "pets" / "preview.png").write_bytes(b"")
    (domain,) = read_folders(tmp_path)
    assert len(domain.images["train"]) == 7
    assert domain.ignored["images in pets/ itself, in no split"] == 1


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_with_the_name_of_a_split_is_told(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "vehicles", {"car": 3, "plane": 3, name: 3})
    told = rf"vehicles/{name} holds images and no classes; train, val and test are names of splits"
    with pytest.raises(UserError, match=told):
        read_folders(tmp_path)
    write_classes(tmp_path / "vehicles" / "train", {"car": 3, "plane": 3, name: 3})
    for file in (tmp_path / "vehicles" / name).glob("*.png"):
        file.unlink()
    (domain,) = (of for of in read_folders(tmp_path))
    assert name in domain.classes


def test_all_names_that_cannot_be_are_told_before_any_image_is_read(tmp_path: Path) -> None:
    for name in ("fine", "mean", "my photos"):
        write_classes(tmp_path / name, {"a": 3})
    with pytest.raises(UserError, match=r"'mean' cannot be the name .* 'my photos' cannot be"):
        read_folders(tmp_path)


def test_folders_within_a_class_and_empty_classes_are_told(tmp_path: Path) -> None:
    write_classes(tmp_path / "pets" / "train", {"cat": 4})
    write_classes(tmp_path / "pets" / "train" / "cat", {"more": 5})
    (tmp_path / "pets" / "train" / "cat" / "__MACOSX").mkdir()
    (domain,) = read_folders(tmp_path)
    assert dict(domain.ignored) == {"images in 'cat/more', deeper than their class's folder": 5}
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="Domain 'none' .* found cat, without images"):
        read_folders(tmp_path)


def test_what_is_left_out_is_told_whatever_its_name(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "pets", {"cat": 8, "dog": 8})
    (Path(os.fsdecode(bytes(tmp_path) + b"/in/pets/cat/caf\xe9"))).write_text("no image")
    words = ["mdl.pack", "folders", str(tmp_path / "in"), str(tmp_path / "out")]
    made = subprocess.run([sys.executable, "-m", *words], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    assert b"left out: 1 " in made.stdout
    assert Domain.read(tmp_path / "out" / "pets").classes == ("cat", "dog")
