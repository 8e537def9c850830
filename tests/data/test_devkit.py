"""The Decathlon's devkit, from its archive to a submission."""

import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdl import evaluate, fit, pack, report
from mdl.data.decathlon import category_id
from mdl.data.devkit import read_devkit
from mdl.data.domains import read_domains
from mdl.data.shards import ShardImages
from mdl.errors import UserError
from tests.conftest import SMALL_SPACE
from tests.data.devkit_fixture import SMALL, build_devkit, shrink_the_published_table


@pytest.fixture(autouse=True)
def small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_the_published_table(monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return build_devkit(tmp_path / "source")


def test_all_ten_are_packed_with_their_labels_and_ids(source: Path, tmp_path: Path) -> None:
    pack.main(["decathlon", str(source), str(tmp_path / "out")])
    domains = read_domains(tmp_path / "out")
    assert set(domains) == {domain.name for domain in SMALL}
    for number, of in enumerate(SMALL, 1):
        domain = domains[of.name]
        assert domain.classes == tuple(f"class {c}" for c in range(of.classes))
        first = number * 10_000_000 + 200_001
        for split, start, count in (("train", first, 7), ("val", first + 7, 3)):
            rows = ShardImages(domain, split).rows
            order = np.argsort(rows["id"])
            assert rows["id"][order].tolist() == list(range(start, start + count))
            assert rows["label"][order].tolist() == [i % of.classes for i in range(count)]
        test = ShardImages(domain, "test").rows
        assert sorted(test["id"]) == list(range(first + 10, first + 14))
        assert set(test["label"]) == {-1}
    assert not domains["svhn"].flip
    assert domains["aircraft"].flip
    assert domains["daimlerpedcls"].fit == "stretch"


def test_folders_and_tars_give_the_same_shards(source: Path, tmp_path: Path) -> None:
    other = build_devkit(tmp_path / "other", unpacked=tuple(d.name for d in SMALL))
    for at, out in ((source, "a"), (other, "b")):
        pack.main(["decathlon", str(at / "decathlon-1.0"), str(tmp_path / out)])
    for file in (tmp_path / "a").glob("*/*"):
        assert file.read_bytes() == (tmp_path / "b" / file.parent.name / file.name).read_bytes()


def test_what_is_missing_or_differs_is_named_and_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = source / "decathlon-1.0"
    (home / "data" / "svhn.tar").unlink()
    (home / "annotations" / "gtsrb_val.json").unlink()
    (home / "data" / "dtd" / "train" / "0001" / "000001.jpg").unlink()
    (home / "data" / "dtd" / "val" / "0001" / "extra.jpg").write_bytes(b"x")
    shorter = home / "annotations" / "ucf101_test_stripped.json"
    content = json.loads(shorter.read_text())
    content["images"] = content["images"][1:]
    shorter.write_text(json.dumps(content))
    expected = [
        "svhn: no images: neither svhn.tar nor svhn/ in",
        "gtsrb: no annotations/gtsrb_val.json",
        "dtd: 1 annotated train files are missing: data/dtd/train/0001/000001.jpg",
        "dtd: 1 val files that no annotation names",
        "ucf101: 3 test images, published are 4",
        "ucf101: 1 test files that no annotation names",
    ]
    with pytest.raises(UserError, match="differs from what is published") as refused:
        pack.main(["decathlon", str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    pack.main(["decathlon", str(source), str(tmp_path / "out"), "--partial"])
    said = capsys.readouterr().out
    for line in expected:
        assert line in str(refused.value)
        assert line in said
    domains = read_domains(tmp_path / "out")
    assert len(domains) == 9
    assert "val" not in domains["gtsrb"].splits
    assert domains["dtd"].splits["train"].images == 6


def change(source: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    file = source / "decathlon-1.0" / "annotations" / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_the_published_archives_are_read_where_they_unpack_to(source: Path, tmp_path: Path) -> None:
    """ImageNet's tar has a name of its own; the others may lie beside the devkit."""
    data = source / "decathlon-1.0" / "data"
    (data / "imagenet12.tar").rename(source / "decathlon-1.0-data-imagenet.tar")
    (data / "svhn.tar").rename(source / "svhn.tar")
    (data / "dtd").rename(source / "decathlon-1.0" / "dtd")
    assert read_devkit(source).differences == []


def test_a_tar_that_was_fetched_again_is_packed_again(source: Path, tmp_path: Path) -> None:
    tar = source / "decathlon-1.0" / "data" / "svhn.tar"
    good = tar.read_bytes()
    with tarfile.open(tar) as archive:
        place = next(member.offset_data for member in archive if member.isfile())
    tar.write_bytes(good[:place] + bytes(60) + good[place + 60 :])
    with pytest.raises(UserError, match="'svhn' holds 1 images that cannot be decoded"):
        pack.main(["decathlon", str(source), str(tmp_path / "out")])
    tar.write_bytes(good)
    pack.main(["decathlon", str(source), str(tmp_path / "out")])
    assert len(read_domains(tmp_path / "out")) == 10


def test_a_domain_that_was_packed_in_part_is_not_taken_for_the_whole(
    source: Path, tmp_path: Path
) -> None:
    file = source / "decathlon-1.0" / "annotations" / "gtsrb_val.json"
    content = file.read_text()
    file.unlink()
    pack.main(["decathlon", str(source), str(tmp_path / "out"), "--partial"])
    file.write_text(content)
    with pytest.raises(UserError, match=r"'gtsrb' is packed in .* val was None, now is 3. Remove"):
        pack.main(["decathlon", str(source), str(tmp_path / "out")])


def test_images_that_were_left_out_are_told_and_make_it_no_whole_decathlon(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "decathlon-1.0" / "data" / "dtd" / "val" / "0001" / "000001.jpg").write_bytes(b"x")
    arguments = ["decathlon", str(source), str(tmp_path / "out"), "--skip-broken"]
    with pytest.raises(UserError, match="not all that is published: dtd: 1 left out"):
        pack.main(arguments)
    assert "dtd: 1 images cannot be decoded, left out; listed in" in capsys.readouterr().out
    assert "000001.jpg" in (tmp_path / "out" / "dtd.left_out.txt").read_text()
    pack.main([*arguments, "--partial"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["annotations"].append(
            c["annotations"][0] | {"category_id": c["annotations"][1]["category_id"]}
        ), "gives image 80200008 two categories"),
        (lambda c: c["annotations"].pop(0), "has no category for image 80200008"),
        (lambda c: c["images"][0].pop("file_name"), "is no annotation file of the devkit: KeyErr"),
    ],
)  # fmt: skip
def test_annotations_that_contradict_themselves_are_refused(
    source: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(source, "svhn_val.json", edit)
    with pytest.raises(UserError, match=message):
        read_devkit(source)


def test_ids_that_were_not_published_are_told(source: Path) -> None:
    change(source, "svhn_test_stripped.json", lambda c: c["images"][0].update(id=5))
    change(source, "dtd_test_stripped.json", lambda c: c["images"][0].update(id=40200012))
    assert read_devkit(source).differences == [
        "dtd: 1 test images have the id of another",
        "svhn: 1 test images have ids, as 5, outside the published 80200011 to 80200014",
    ]


def test_no_devkit_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No devkit at .*; expected|No devkit at .*expected"):
        read_devkit(tmp_path)


def test_a_damaged_annotation_file_is_refused(source: Path) -> None:
    (source / "decathlon-1.0" / "annotations" / "svhn_val.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"svhn_val.json is no annotation file of the devkit"):
        read_devkit(source)


def test_a_category_of_another_domain_is_refused(source: Path) -> None:
    file = source / "decathlon-1.0" / "annotations" / "svhn_val.json"
    file.write_text(file.read_text().replace('"category_id": 80000001', '"category_id": 70000001'))
    with pytest.raises(UserError, match=r"the category 70000001; expected 80000001 to 80000003"):
        read_devkit(source)


def test_a_truncated_tar_is_refused(source: Path) -> None:
    tar = source / "decathlon-1.0" / "data" / "svhn.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"svhn.tar cannot be read as a tar"):
        read_devkit(source)


def test_a_name_that_leads_out_of_the_archive_is_never_followed(
    source: Path, tmp_path: Path
) -> None:
    """`..` in a member or an annotation: nothing is unpacked, and nothing outside is read."""
    home = source / "decathlon-1.0"
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"secret")
    with tarfile.open(home / "data" / "svhn.tar", "a") as tar:
        tar.add(outside, "svhn/../../escaped.jpg")
    names = ["data/dtd/../../../../secret.jpg", f"data/dtd/{outside}", str(outside)]
    for place, name in enumerate(names):
        change(source, "dtd_val.json", lambda c, at=place, to=name: c["images"][at].update(
            file_name=to
        ))  # fmt: skip
    differences = read_devkit(source).differences
    assert any(text.startswith("dtd: 3 annotated val files are missing") for text in differences)
    assert not list(tmp_path.rglob("escaped.jpg"))


def test_from_the_devkit_to_a_submission(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack.main(["decathlon", str(source), str(tmp_path / "out")])
    settings = [
        *SMALL_SPACE, f"data.root={tmp_path / 'out'}", f"runs_dir={tmp_path / 'runs'}",
        "data.image_size=12", "data.load_size=14", "data.batch_size=2", "data.workers=0",
        "search.held_out_batch_size=2", "trainer.max_steps=4", "trainer.validation_interval=2",
        "trainer.accelerator=cpu", "wandb.mode=disabled",
    ]  # fmt: skip
    fit.main(["recipes/mpnas_search.yaml", *settings])
    fit.main(["recipes/mpnas_retrain.yaml", *settings])
    run = tmp_path / "runs" / "mpnas_retrain"
    assert set(json.loads((run / "scores.json").read_text())["splits"]) == {"val"}
    said = capsys.readouterr().out
    assert "No test scores: aircraft, cifar100" in said
    assert "Decathlon score S on val:" in said
    with pytest.raises(UserError, match="No domain has labelled test images"):
        evaluate.main([str(run)])
    with pytest.raises(UserError, match="There is no folder"):
        evaluate.main([str(run), "--submission", str(tmp_path / "nowhere" / "results.zip")])
    file = tmp_path / "results.zip"
    evaluate.main([str(run), "--submission", str(file)])
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["results.json"]
        answers = json.loads(archive.read("results.json"))
    ids = {n * 10_000_000 + 200_011 + i for n in range(1, 11) for i in range(4)}
    assert sorted(answer["image_id"] for answer in answers) == sorted(ids)
    for answer in answers:
        number = answer["image_id"] // 10_000_000
        classes = SMALL[number - 1].classes
        assert 1 <= answer["category_id"] - number * 10_000_000 <= classes
    assert category_id("vgg-flowers", 101) == 100_000_102


def test_training_on_train_and_validation_uses_all_of_both(source: Path, tmp_path: Path) -> None:
    pack.main(["decathlon", str(source), str(tmp_path / "out")])
    settings = [
        *SMALL_SPACE, f"data.root={tmp_path / 'out'}", f"runs_dir={tmp_path / 'runs'}",
        "data.image_size=12", "data.load_size=14", "data.batch_size=2", "data.workers=0",
        "search.held_out_batch_size=2", "trainer.max_steps=2", "trainer.accelerator=cpu",
        "wandb.mode=disabled",
    ]  # fmt: skip
    fit.main(["recipes/mpnas_search.yaml", *settings])
    with pytest.raises(UserError, match="a search sees no validation images"):
        fit.main(["recipes/mpnas_search.yaml", *settings, "data.train_splits=[train, val]"])
    fit.main(["recipes/mpnas_retrain.yaml", *settings, "data.train_splits=[train, val]"])
    run = tmp_path / "runs" / "mpnas_retrain"
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert json.loads((run / "scores.json").read_text())["splits"] == {}
    report.main([str(run)])
    page = (run / "report.md").read_text()
    assert "was trained on all splits that have labels" in page
    assert "not finished" not in page
    with pytest.raises(UserError, match="was trained on the val split"):
        evaluate.main([str(run), "--split", "val"])
    evaluate.main([str(run), "--submission", str(tmp_path / "r.zip")])
