"""Shards and what lies beside them, on real files."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mdl import pack
from mdl.data import packing, shards
from mdl.data.decoding import decode
from mdl.data.domains import Domain, read_domains
from mdl.data.folders import read_folders
from mdl.data.images import BrokenImage
from mdl.data.packing import pack_domain
from mdl.data.shard_job import ShardDone, ShardJob
from mdl.data.shards import ShardImages
from mdl.data.source import DomainSource
from mdl.errors import UserError
from tests.conftest import ColouredImage, coloured


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy of the packed domains that a test may damage."""
    return Path(shutil.copytree(packed, tmp_path / "own"))


def test_webdataset_reads_the_shards_and_sees_the_same_images(packed: Path) -> None:
    domain = Domain.read(packed / "birds")
    images = ShardImages(domain, "train")
    url = str(domain.folder / domain.splits["train"].shards[0].file)
    pipeline = webdataset.WebDataset(url, shardshuffle=False).decode("rgb8").to_tuple("png", "cls")
    for at, (pixels, label) in enumerate(pipeline):
        assert (pixels == decode(images.read(at), 12, "crop")).all()
        assert label == images.rows[at]["label"]
    assert at + 1 == len(images)


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for at in ("one", "two"):
        images = {"train": coloured(3, 20)}
        workers = 1 if at == "one" else 2
        pack_domain(
            DomainSource("d", list("abc"), images, True), tmp_path / at, size=72, workers=workers
        )
    for file in (tmp_path / "one" / "d").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "d" / file.name).read_bytes()


def test_domain_json_says_what_the_images_are(packed: Path) -> None:
    domain = Domain.read(packed / "cars")
    assert domain.classes == ("class0", "class1", "class2", "class3")
    assert domain.splits["train"].images_per_class == (11, 10, 10, 10)
    assert domain.splits["val"].width == (12, 12)
    images = ShardImages(domain, "train")
    pixels = np.stack([decode(images.read(i), 12, "crop") for i in range(len(images))]) / 255
    assert domain.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert domain.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


@dataclass(frozen=True)
class StoredImage:
    content: bytes
    label: int = 0
    name: str = "stored.jpg"
    id: int = -1
    version: str = ""

    def load(self) -> bytes:
        return self.content


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_large_images_are_scaled_down_and_small_ones_kept_to_the_byte(tmp_path: Path) -> None:
    small = encoded(Image.new("RGB", (50, 60), "red"), "JPEG")
    large = encoded(Image.new("RGB", (300, 200), "red"), "JPEG")
    images = {"train": [StoredImage(small), StoredImage(large)]}
    domain = pack_domain(DomainSource("d", ["a"], images, True), tmp_path, size=72)
    assert domain.splits["train"].height == (60, 72)
    assert domain.splits["train"].width == (50, 108)
    contents = [ShardImages(domain, "train").read(i) for i in range(2)]
    assert small in contents


def test_a_photo_taken_sideways_is_packed_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    sideways = encoded(Image.new("RGB", (60, 30), "red"), "JPEG", exif=exif)
    images = {"train": [StoredImage(sideways)]}
    domain = pack_domain(DomainSource("d", ["a"], images, True), tmp_path, size=72)
    assert (domain.splits["train"].width, domain.splits["train"].height) == ((30, 30), (60, 60))


def png(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_grey_of_16_bits_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = decode(png(Image.fromarray(ramp)), 8, "crop")
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 0.5
    with pytest.raises(BrokenImage, match="floating-point pixels"):
        decode(png(Image.fromarray(ramp.astype(np.float32)), "TIFF"), 8, "crop")
    with pytest.raises(BrokenImage, match="beyond 16 bits"):
        decode(png(Image.fromarray(ramp.astype(np.int32) * 9), "TIFF"), 8, "crop")


def test_a_link_to_nowhere_is_a_broken_image(tmp_path: Path) -> None:
    folders = write_folders(tmp_path / "images")
    (next(folders.glob("*/train/*")) / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (domain,) = (d for d in read_folders(folders) if d.name)
    source = DomainSource(domain.name, domain.classes, domain.images, True)
    with pytest.raises(UserError, match=r"1 images that cannot be decoded: .*gone.png"):
        pack_domain(source, tmp_path / "out", size=72)


def test_more_shards_than_files_may_be_open_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "IMAGES_PER_SHARD", 3)
    source = DomainSource("d", list("abc"), {"train": coloured(3, 60)}, True)
    images = ShardImages(pack_domain(source, tmp_path, size=72), "train")
    monkeypatch.setattr(shards, "_open_files", shards._OpenFiles(most=4))
    before = len(os.listdir("/proc/self/fd"))
    for image in np.random.default_rng(0).permutation(60):
        assert images.read(int(image))
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_tall_images_are_stretched_not_cropped(tmp_path: Path) -> None:
    tall = encoded(Image.new("RGB", (20, 40), "red"), "PNG")
    domain = pack_domain(
        DomainSource("d", ["a"], {"train": [StoredImage(tall)]}, True), tmp_path, size=72
    )
    assert domain.fit == "stretch"


def test_images_that_cannot_be_decoded_are_named_or_left_out(tmp_path: Path) -> None:
    images = {"train": [*coloured(1, 3), StoredImage(b"no image", name="bad/one.png")]}
    with pytest.raises(UserError, match=r"1 images that cannot be decoded: bad/one.png .*--skip-b"):
        pack_domain(DomainSource("d", ["a"], images, True), tmp_path, size=72)
    assert not (tmp_path / "d").exists()  # nothing half-written
    domain = pack_domain(
        DomainSource("d", ["a"], images, True), tmp_path, size=72, skip_broken=True
    )
    assert domain.splits["train"].images == 3


def test_an_image_whose_name_is_no_text_can_be_left_out(tmp_path: Path) -> None:
    images = {"train": [*coloured(1, 3), StoredImage(b"no image", name="caf\udce9.png")]}
    pack_domain(DomainSource("d", ["a"], images, True), tmp_path, size=72, skip_broken=True)
    assert (tmp_path / "d.left_out.txt").read_bytes().startswith(b"caf\xe9.png (")


def test_a_place_that_cannot_be_packed_into_is_told(tmp_path: Path) -> None:
    (tmp_path / "images" / "d" / "train" / "a").mkdir(parents=True)
    (tmp_path / "images" / "d" / "train" / "a" / "1.png").write_bytes(coloured(1, 1)[0].load())
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"could not be written: .* Remove what lies there"):
        pack.main(["folders", str(tmp_path / "images"), str(tmp_path / "out")])


def test_a_size_below_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pack.main(["folders", "in", "out", "--size", "0"])
    assert "expected a whole number, at least 1" in capsys.readouterr().err


def counted(images: list[ColouredImage], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are loaded from here on."""
    loaded: list[str] = []
    original = ColouredImage.load

    def counting(self: ColouredImage) -> bytes:
        loaded.append(f"{self.label}/{self.index}")
        return original(self)

    monkeypatch.setattr(ColouredImage, "load", counting)
    return loaded


class InThisProcess(Executor):
    """Stands in for the pool of processes, so that a test sees what is done."""

    def __init__(self, *args: object) -> None:
        pass

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[object] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(packing, "IMAGES_PER_SHARD", 5)


def test_packing_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    images = {"train": coloured(3, 20), "val": coloured(3, 7)}
    source = DomainSource("d", list("abc"), images, True)
    whole = pack_domain(source, tmp_path / "whole", size=72)
    original = ShardJob.run

    def dying(self: ShardJob) -> ShardDone:
        if self.number == 2:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardJob, "run", dying)
        with pytest.raises(KeyboardInterrupt):
            pack_domain(source, tmp_path / "broken", size=72)
    assert not (tmp_path / "broken" / "d").exists()
    loaded = counted(images["train"], monkeypatch)
    mended = pack_domain(source, tmp_path / "broken", size=72)
    assert len(loaded) == 5  # the one shard that was not done
    names = {file.name for file in whole.folder.iterdir()}
    assert {file.name for file in mended.folder.iterdir()} == names
    for name in names:
        assert (whole.folder / name).read_bytes() == (mended.folder / name).read_bytes()


def test_what_was_packed_of_other_images_is_packed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    """An image was mended between two starts: only its shard is packed again."""
    images = coloured(3, 20)
    spoilt = [
        *images[:7],
        StoredImage(b"no image", label=images[7].label, version="old"),
        *images[8:],
    ]
    with pytest.raises(UserError, match="1 images that cannot be decoded"):
        pack_domain(DomainSource("d", list("abc"), {"train": spoilt}, True), tmp_path, size=72)
    loaded = counted(images, monkeypatch)
    source = DomainSource("d", list("abc"), {"train": images}, True)
    mended = pack_domain(source, tmp_path, size=72)
    assert len(loaded) == 5
    assert mended.splits["train"].images == 20


def test_a_full_disk_is_told_and_what_is_packed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    source = DomainSource("d", list("abc"), {"train": coloured(3, 20)}, True)
    original = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "00002.tar" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"The disk is full: domain 'd' .* goes on"):
            pack_domain(source, tmp_path, size=72)
    assert len(list((tmp_path / ".d.partial").glob("*.tar"))) >= 2
    assert pack_domain(source, tmp_path, size=72).splits["train"].images == 20


def test_processes_that_pack_into_one_folder_wait_for_one_another(tmp_path: Path) -> None:
    source = DomainSource("d", list("abc"), {"train": coloured(3, 300)}, True)
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        left = list(pool.map(packing_process, [source] * 3, [tmp_path] * 3))
    assert sorted(left) == [[], ["d"], ["d"]]
    assert (tmp_path / "domains.json").read_text() == '[\n "d"\n]\n'


def test_a_killed_packing_leaves_no_process_and_no_lock(tmp_path: Path) -> None:
    write_folders(tmp_path / "in")
    code = (
        "import os, time\nfrom mdl import pack\nfrom mdl.data import shard_job\n"
        "def run(self):\n    open(f'{self.folder}/{os.getpid()}.pid', 'w')\n    time.sleep(600)\n"
        "shard_job.ShardJob.run = run\n"
        f"pack.main(['folders', '{tmp_path / 'in'}', '{tmp_path / 'out'}'])\n"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    for _ in range(600):
        pids = [int(file.stem) for file in (tmp_path / "out").glob(".pets.partial/*.pid")]
        if pids:
            break
        time.sleep(0.1)
    started.kill()
    started.wait()
    for _ in range(100):
        if not any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
            break
        time.sleep(0.1)
    assert pids and not any(Path(f"/proc/{pid}/stat").exists() for pid in pids)
    pack.main(["folders", str(tmp_path / "in"), str(tmp_path / "out")])
    assert read_domains(tmp_path / "out")["pets"].splits["train"].images == 8


def test_a_process_that_is_killed_while_packing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: ShardJob) -> ShardDone:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    monkeypatch.setattr(ShardJob, "run", run)
    source = DomainSource("d", ["a"], {"train": coloured(1, 3)}, True)
    with pytest.raises(UserError, match="A process that packs 'd' was killed"):
        pack_domain(source, tmp_path, size=72)


def test_a_domain_that_is_not_whole_yet_is_no_domain(packed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(packed, tmp_path / "out"))
    shutil.move(out / "birds", out / ".birds.partial")
    assert set(read_domains(out)) == {"cars", "types"}


def packing_process(source: DomainSource, out: Path) -> list[str]:
    return packing.pack_domains([source], out, size=72)


def write_folders(root: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = root / "pets" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (10, 10), (40 * i, 0, 0)).save(folder / f"{i}.jpg")
    (root / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    return root


def test_image_folders_are_read_by_split_and_class(tmp_path: Path) -> None:
    (pets,) = read_folders(write_folders(tmp_path))
    assert pets.classes == ("cat", "dog")
    assert [len(images) for images in pets.images.values()] == [8, 4]
    assert pets.ignored == {"files '.txt', which are no images": 1}


def test_folders_that_are_laid_out_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No folder at"):
        read_folders(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no folders"):
        read_folders(tmp_path)
    write_folders(tmp_path)
    with pytest.raises(UserError, match=r"holds the splits of one domain.*Give its parent"):
        read_folders(tmp_path / "pets")
    (tmp_path / "pets" / "val" / "bird").mkdir()
    with pytest.raises(UserError, match="a class that the training split lacks"):
        read_folders(tmp_path)
    (tmp_path / "apart" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="'apart' has no split 'train'.* found cat"):
        read_folders(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No shards at data.root"):
        read_domains(tmp_path)


def test_a_domain_that_is_not_there_is_refused_with_the_nearest(packed: Path) -> None:
    with pytest.raises(UserError, match="'brids' of data.domains .* did you mean 'birds'"):
        read_domains(packed, ["brids"])


def edit(folder: Path, change: str, by: str) -> None:
    text = (folder / "domain.json").read_text()
    assert change in text
    (folder / "domain.json").write_text(text.replace(change, by, 1))


def test_a_domain_json_that_contradicts_itself_is_refused(own: Path) -> None:
    edit(own / "birds", '"images": 13', '"images": 14')
    with pytest.raises(UserError, match="contradicts itself on split '"):
        Domain.read(own / "birds")


def test_a_damaged_domain_json_is_refused(own: Path) -> None:
    (own / "birds" / "domain.json").write_text('{"format": 1')
    with pytest.raises(UserError, match="cannot be read: JSONDecodeError"):
        Domain.read(own / "birds")
    (own / "birds" / "domain.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="cannot be read: KeyError"):
        Domain.read(own / "birds")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("splits", [], "cannot be read: AttributeError"),
        ("mean", [0.5], "a mean of 1 and a std of 3 numbers; expected 3 each"),
        ("mean", 0.5, "cannot be read: TypeError"),
        ("std", [0.1, 0.2, 0], "cannot be read: ValueError: a std or size that is not above 0"),
        ("std", ["a", 1, 2], "cannot be read: ValueError: a mean, std or size that is no number"),
        ("flip", "no", "cannot be read: ValueError: a flip that is not true or false"),
        ("name", 5, "a name that is no text"),
        ("index_sha256", 5, "gives 'train.index.npy' the checksum '5'"),
        ("index", 5, "names the file '5'"),
    ],
)
def test_a_domain_json_with_other_things_in_it_is_refused(
    own: Path, key: str, value: object, message: str
) -> None:
    file = own / "birds" / "domain.json"
    content = json.loads(file.read_text())
    (content if key in content else content["splits"]["train"])[key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Domain.read(own / "birds")


def test_shards_that_do_not_match_the_domain_json_are_refused(own: Path) -> None:
    shard = own / "birds" / "train-00000.tar"
    shard.write_bytes(shard.read_bytes() + b"more")
    with pytest.raises(UserError, match="domain.json says .*: it is another file"):
        ShardImages(Domain.read(own / "birds"), "train")
    shard.unlink()
    with pytest.raises(UserError, match="Shard .* is missing"):
        ShardImages(Domain.read(own / "birds"), "train")
    shutil.copy(own / "cars" / "train.index.npy", own / "birds")
    with pytest.raises(UserError, match="does not match the checksum"):
        ShardImages(Domain.read(own / "birds"), "train")


def test_a_label_outside_the_classes_is_refused(packed: Path) -> None:
    domain = replace(Domain.read(packed / "cars"), classes=("a", "b"))
    with pytest.raises(UserError, match=r"label [23], outside its 2 classes \(0 to 1\)"):
        ShardImages(domain, "train")


def test_a_missing_or_empty_split_is_refused(packed: Path) -> None:
    domain = Domain.read(packed / "cars")
    with pytest.raises(UserError, match="has no split 'extra'; it has"):
        domain.split("extra")
    empty = replace(domain.splits["val"], images=0)
    with pytest.raises(UserError, match="Split 'val' of domain 'cars' holds no image"):
        replace(domain, splits={"val": empty}).split("val")


def test_images_behind_the_end_of_a_cut_shard_are_broken_and_named(own: Path) -> None:
    shard = own / "birds" / "train-00000.tar"
    whole = shard.read_bytes()
    images = ShardImages(Domain.read(own / "birds"), "train")
    shard.write_bytes(whole[: int(images.rows["offset"][80])])
    cut = ShardImages(Domain.read(own / "birds"), "train")
    assert len(cut.cut_off()) == 10
    assert cut.cut_off()[0].endswith("train-00000.tar:00000080.png")
    cut.read(79)
    with pytest.raises(BrokenImage, match="the shard ends before it"):
        cut.read(80)


@pytest.mark.parametrize("name", ["", "a.b", "-x", "a/b", "a b", "mean"])
def test_a_name_that_cannot_be_a_domains_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be the name of a domain"):
        pack_domain(DomainSource(name, ["a"], {"train": coloured(1, 3)}, True), tmp_path, size=72)
