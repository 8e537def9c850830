"""Data at an address, from a server that behaves badly."""

import errno
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mdl import fit
from mdl.data import cache
from mdl.data.cache import Cache, check_address
from mdl.data.domains import Domain, read_domains, read_remote_domains, write_list
from mdl.data.packing import pack_domain
from mdl.data.shards import ShardImages
from mdl.data.source import DomainSource
from mdl.errors import UserError
from tests.conftest import coloured

PLENTY = 10**9


@dataclass
class Server:
    """faults: ways in which the next answers about shards go wrong."""

    root: Path
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: object, server_state: Server, **kwargs: object) -> None:
        self.state = server_state
        super().__init__(*args, directory=str(server_state.root), **kwargs)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.state.asked[self.path] += 1
        fault = self.state.faults.pop(0) if self.state.faults and ".tar" in self.path else ""
        if not fault:
            return super().do_GET()
        content = (self.state.root / self.path[1:]).read_bytes()
        if fault == "refuse":
            self.send_error(503)
            return None
        if fault == "drop":
            self.connection.close()
            return None
        if fault == "truncate":  # says the length of what it sends: only the checksum can tell
            content = content[: len(content) // 2]
        if fault == "corrupt":
            content = bytes(len(content))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 3] if fault == "hang up" else content)
        return None


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(cache, "FIRST_PAUSE", 0.001)
    state = Server(Path(shutil.copytree(packed, tmp_path / "served")))
    write_list(state.root)
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, server_state=state))
    state.address = f"http://127.0.0.1:{serving.server_port}"
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield state
    serving.shutdown()
    serving.server_close()


def remote(server: Server, tmp_path: Path, limit: int = PLENTY) -> dict[str, Domain]:
    return read_remote_domains(server.address, None, tmp_path / "cache", limit)


def test_domains_at_an_address_hold_the_same_images(server: Server, tmp_path: Path) -> None:
    here, there = read_domains(server.root), remote(server, tmp_path)
    assert list(here) == list(there)
    for name in here:
        own, fetched = ShardImages(here[name], "train"), ShardImages(there[name], "train")
        assert [own.read(i) for i in range(len(own))] == [fetched.read(i) for i in range(len(own))]
    assert max(server.asked[f"/{name}/train-00000.tar"] for name in here) == 1


@pytest.mark.parametrize("fault", ["refuse", "drop", "hang up", "truncate", "corrupt"])
def test_a_fetch_that_goes_wrong_is_tried_again(server: Server, tmp_path: Path, fault: str) -> None:
    domain = remote(server, tmp_path)["birds"]
    expected = ShardImages(read_domains(server.root)["birds"], "train").read(5)
    server.faults = [fault, fault]
    assert ShardImages(domain, "train").read(5) == expected
    assert server.asked["/birds/train-00000.tar"] == 3


def test_what_cannot_be_fetched_is_refused_and_leaves_nothing_half_fetched(
    server: Server, tmp_path: Path
) -> None:
    images = ShardImages(remote(server, tmp_path)["birds"], "train")
    server.faults = ["truncate"] * 50
    with pytest.raises(UserError, match=r"train-00000.tar could not be fetched in 6 attempts: "):
        images.read(0)
    assert not [f for f in (tmp_path / "cache").rglob("*.tar*") if not f.name.endswith(".lock")]
    server.faults = []
    assert images.read(0)


def test_a_missing_file_is_told_at_once(server: Server, tmp_path: Path) -> None:
    (server.root / "birds" / "train-00000.tar").unlink()
    images = ShardImages(remote(server, tmp_path)["birds"], "train")
    with pytest.raises(UserError, match=r"There is no http://.*/birds/train-00000.tar"):
        images.read(0)
    assert server.asked["/birds/train-00000.tar"] == 1
    with pytest.raises(UserError, match=r"There is no http://.*/nowhere/domains.json"):
        read_remote_domains(f"{server.address}/nowhere", None, tmp_path / "cache", PLENTY)


def stored(tmp_path: Path) -> int:
    return sum(file.stat().st_size for file in (tmp_path / "cache" / "files").glob("*.tar"))


def test_the_cache_keeps_its_limit_and_drops_what_was_used_longest_ago(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdl.data.packing.IMAGES_PER_SHARD", 10)
    source = DomainSource("many", list("abc"), {"train": coloured(3, 60)}, True)
    domain = pack_domain(source, server.root, size=72)
    largest = max(shard.bytes for shard in domain.splits["train"].shards)
    limit = 2 * largest
    images = ShardImages(remote_only(server, "many", tmp_path, limit), "train")
    for image in (0, 15, 5, 25):  # the second shard is the one that was not read again
        assert images.read(image)
        assert stored(tmp_path) <= limit
    assert images.read(0)
    assert server.asked["/many/train-00000.tar"] == 1
    assert images.read(15)
    assert server.asked["/many/train-00001.tar"] == 2


def test_processes_that_fetch_at_once_keep_the_limit_between_them(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdl.data.packing.IMAGES_PER_SHARD", 10)
    source = DomainSource("many", list("abc"), {"train": coloured(3, 60)}, True)
    domain = pack_domain(source, server.root, size=72)
    limit = 2 * max(shard.bytes for shard in domain.splits["train"].shards)
    download = cache._download

    def slowly(url: str, target: Path) -> None:
        download(url, target)
        time.sleep(0.1)

    images = ShardImages(remote_only(server, "many", tmp_path, limit), "train")
    monkeypatch.setattr(cache, "_download", slowly)
    expected = ShardImages(domain, "train")
    with multiprocessing.get_context("fork").Pool(6) as pool:
        reading = pool.map_async(images.read, range(0, 60, 10))
        most = 0
        while not reading.ready():
            most = max(most, on_disk(tmp_path / "cache" / "files"))
            time.sleep(0.005)
        assert reading.get() == [expected.read(image) for image in range(0, 60, 10)]
    assert limit / 2 < most <= limit


def on_disk(folder: Path) -> int:
    """Bytes of what is kept and fetched; one that is renamed meanwhile counts once."""
    found = {}
    for file in folder.glob("*.tar*"):
        if not file.name.endswith((".lock", ".room")):
            with suppress(FileNotFoundError):
                of = file.stat()
                found[of.st_ino] = of.st_size
    return sum(found.values())


def test_a_kept_file_that_lost_its_content_is_fetched_again(server: Server, tmp_path: Path) -> None:
    images = ShardImages(remote_only(server, "birds", tmp_path, PLENTY), "train")
    expected = images.read(3)
    for file in (tmp_path / "cache" / "files").glob("*.tar"):
        os.truncate(file, 0)  # as a machine that lost its power may leave it
    assert images.read(3) == expected


def test_a_folder_that_may_not_be_written_is_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"could not be written: .* Remove what lies there"):
        remote(server, tmp_path)


def remote_only(server: Server, name: str, tmp_path: Path, limit: int) -> Domain:
    return read_remote_domains(server.address, [name], tmp_path / "cache", limit)[name]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sha256", "../../../important", "the checksum '../../../important'; expected 64"),
        ("file", "../important.tar", "names the file '../important.tar'; expected a plain name"),
        ("file", "..", "names the file '..'; expected a plain name"),
        ("bytes", -5, "a negative size"),
    ],
)
def test_what_an_address_says_cannot_reach_outside_the_cache(
    server: Server, tmp_path: Path, key: str, value: object, message: str
) -> None:
    file = server.root / "birds" / "domain.json"
    content = json.loads(file.read_text())
    content["splits"]["train"]["shards"][0][key] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        remote_only(server, "birds", tmp_path, PLENTY)


def test_only_its_own_files_make_room(server: Server, tmp_path: Path) -> None:
    images = ShardImages(remote_only(server, "birds", tmp_path, 10**6), "train")
    images.read(0)
    (tmp_path / "cache" / "files" / "thesis.tex").write_bytes(bytes(10**6))
    assert ShardImages(remote_only(server, "cars", tmp_path, 10**6), "train").read(0)
    assert (tmp_path / "cache" / "files" / "thesis.tex").is_file()


def test_what_a_killed_process_left_half_fetched_makes_room(server: Server, tmp_path: Path) -> None:
    images = ShardImages(remote_only(server, "birds", tmp_path, 10**6), "train")
    name = f".{'a' * 20}-train-00000.tar"
    left = [tmp_path / "cache" / "files" / f"{name}{ending}" for ending in (".partial", ".room")]
    left[0].parent.mkdir(exist_ok=True, parents=True)
    for file in left:
        file.write_bytes(bytes(10**6))
    assert images.read(0)
    assert not any(file.exists() for file in left)


def test_a_fetch_that_is_interrupted_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ShardImages(remote_only(server, "birds", tmp_path, 10**6), "train")

    def interrupted(url: str, target: Path) -> None:
        target.write_bytes(bytes(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr("mdl.data.cache._download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        images.read(0)
    files = [file for file in (tmp_path / "cache" / "files").iterdir() if file.stat().st_size]
    assert not [file for file in files if file.suffix in (".partial", ".room")]


def test_a_page_instead_of_a_list_is_refused(server: Server, tmp_path: Path) -> None:
    (server.root / "domains.json").write_text("<html>Sign in</html>")
    with pytest.raises(UserError, match="domains.json is no list of domains"):
        remote(server, tmp_path)


def test_what_a_worker_cannot_fetch_is_one_sentence(
    server: Server, small_run: list[str], tmp_path: Path
) -> None:
    (server.root / "birds" / "train-00000.tar").unlink()
    changes = [f"data.cache_dir={tmp_path / 'cache'}", f"data.root={server.address}"]
    with pytest.raises(UserError) as refused:
        fit.main(["recipes/mpnas_search.yaml", *small_run, *changes, "data.workers=1"])
    assert str(refused.value).startswith("There is no http://")
    assert "Traceback" not in str(refused.value)


def test_a_shard_larger_than_the_cache_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.cache_gb allows 1000; .* Raise data.cache_gb"):
        ShardImages(remote_only(server, "birds", tmp_path, 1000), "train").read(0)


def read_all(domain: Domain) -> int:
    images = ShardImages(domain, "train")
    return sum(len(images.read(i)) for i in range(len(images)))


def test_processes_fetch_a_shard_once_between_them(server: Server, tmp_path: Path) -> None:
    domain = remote_only(server, "birds", tmp_path, PLENTY)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(read_all, [domain] * 4)
    assert len(set(found)) == 1
    assert server.asked["/birds/train-00000.tar"] == 1


def test_data_packed_anew_at_the_address_are_not_mistaken_for_the_old(
    server: Server, tmp_path: Path
) -> None:
    ShardImages(remote_only(server, "types", tmp_path, PLENTY), "train").read(0)
    shutil.rmtree(server.root / "types")
    source = DomainSource("types", ["a"], {"train": coloured(1, 4, side=20)}, True)
    expected = ShardImages(pack_domain(source, server.root, size=72), "train").read(0)
    assert ShardImages(remote_only(server, "types", tmp_path, PLENTY), "train").read(0) == expected


def test_a_run_on_an_address_is_the_run_on_the_folder(
    server: Server, small_run: list[str], tmp_path: Path
) -> None:
    from tests.test_fit import assert_same_run, run_of

    changes = [f"data.cache_dir={tmp_path / 'cache'}", "data.workers=1"]
    fit.main(["recipes/mpnas_search.yaml", *small_run, "name=here"])
    at = f"data.root={server.address}"
    fit.main(["recipes/mpnas_search.yaml", *small_run, *changes, at, "name=there"])
    assert_same_run(run_of(small_run, "here"), run_of(small_run, "there"))


@pytest.mark.parametrize(
    "root",
    [
        "pipe:curl https://example.org/x",
        "http://example.org/data",
        "ftp://example.org/data",
        "file:///etc",
        "simplecache::https://example.org/data",
        "https://example.org/data::file:///etc",
        "https://example.org/../data",
        "https://example.org/|sh",
    ],
)
def test_what_is_no_plain_address_is_refused(root: str, small_run: list[str]) -> None:
    with pytest.raises(UserError, match="is no address that data are read from"):
        fit.main(["recipes/mpnas_search.yaml", *small_run, f"data.root={root}"])


@pytest.mark.parametrize("root", ["https://a.org/x", "s3://bucket/x", "gs://bucket/x"])
def test_plain_addresses_are_taken(root: str) -> None:
    check_address(root)
    Cache(root, Path("none"), 1).below("birds")


def test_a_fault_of_a_stores_own_kind_is_tried_again_and_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What s3fs and gcsfs raise is no OSError."""

    class NoCredentials(Exception):
        pass

    domain, faults = remote(server, tmp_path)["birds"], [NoCredentials("no key"), RuntimeError()]
    download = cache._download

    def faulty(url: str, target: Path) -> None:
        if faults:
            raise faults.pop()
        download(url, target)

    monkeypatch.setattr(cache, "_download", faulty)
    assert ShardImages(domain, "train").read(0)
    faults += [NoCredentials("no key")] * cache.ATTEMPTS
    with pytest.raises(UserError, match="in 6 attempts: NoCredentials: no key. Check the address"):
        ShardImages(domain, "val").read(0)


def test_a_cache_of_another_user_is_read(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = remote(server, tmp_path)["birds"]
    expected = ShardImages(domain, "train").read(3)

    def not_ours(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not the owner")

    monkeypatch.setattr(os, "utime", not_ours)
    assert ShardImages(domain, "train").read(3) == expected
