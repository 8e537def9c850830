"""Files of checkpoints: whole at every moment, two of the last, every flipped bit found."""

import os
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

from mdl.errors import UserError
from mdl.training.checkpoints import AtomicCheckpointIO, check_readable, read_whole
from tests.disks import flip, no_file_above


def content(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.arange(3000.0) + step}


def steps(folder: Path) -> dict[str, int]:
    """Name -> the step of each file there; all of them are whole."""
    return {file.name: read_whole(file)["step"] for file in folder.iterdir()}


def save(folder: Path, step: int, name: str = "last.ckpt") -> None:
    AtomicCheckpointIO().save_checkpoint(content(step), folder / name)


def test_the_last_checkpoint_before_is_kept(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert steps(tmp_path) == {"last.ckpt": 1}
    save(tmp_path, 2)
    save(tmp_path, 2, "best.ckpt")
    assert steps(tmp_path) == {"last.ckpt": 2, "previous.ckpt": 1, "best.ckpt": 2}
    save(tmp_path, 3)
    assert steps(tmp_path) == {"last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 2}


@pytest.mark.parametrize("links", [True, False])
def test_whichever_call_a_process_dies_before_a_whole_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Dies before each call that changes a folder, one after the other; with and without links."""
    calls = {name: getattr(os, name) for name in ("link", "replace", "unlink", "fsync")}

    class Died(BaseException):
        pass

    def saved_until(count: int, folder: Path) -> int:
        made = 0

        def call(name, *given, **named):  # type: ignore[no-untyped-def]
            nonlocal made
            if made == count:
                raise Died
            made += 1
            if name == "link" and not links:
                raise PermissionError("no hard links here")
            return calls[name](*given, **named)

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, lambda *of, n=name, **named: call(n, *of, **named))
            # a process that is killed does not tidy up
            patch.setattr("mdl.training.checkpoints.discard", lambda file: None)
            try:
                save(folder, 3)
            except Died:
                pass
        return made

    count = 0
    while True:
        folder = tmp_path / str(count)
        save(folder, 1)
        save(folder, 2)
        made = saved_until(count, folder)
        found = {n: s for n, s in steps(folder).items() if not n.startswith(".")}
        assert found.get("last.ckpt", found["previous.ckpt"]) >= 2
        assert not links or "last.ckpt" in found
        # and the next process saves as if nothing had been
        save(folder, 4)
        save(folder, 5)
        assert steps(folder) == {"last.ckpt": 5, "previous.ckpt": 4}
        if made < count:
            break
        count += 1
    assert count >= 4


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    told = r"last.ckpt could not be written: File too large .0.0 MB are needed, .*Free space there"
    with no_file_above(5000), pytest.raises(UserError, match=told):
        save(tmp_path, 3)
    assert steps(tmp_path) == {"last.ckpt": 2, "previous.ckpt": 1}
    save(tmp_path, 3)
    assert steps(tmp_path) == {"last.ckpt": 3, "previous.ckpt": 2}


def test_every_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "last.ckpt"
    whole, found = file.read_bytes(), 0
    generator = torch.Generator().manual_seed(0)
    # all of the ends, where the directory lies, and places between them
    ends = [*range(64), *range(len(whole) - 300, len(whole))]
    for place in [*ends, *torch.randint(len(whole), (200,), generator=generator).tolist()]:
        file.write_bytes(whole)
        flip(file, place)
        try:
            read = read_whole(file)
        except Exception:
            found += 1
        else:
            assert read["step"] == 1 and torch.equal(read["weights"], torch.arange(3000.0) + 1)
    assert found > 150
    for size in (0, 1, 5000, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(Exception, match=r"zip|EOF|truncated"):
            read_whole(file)


@pytest.mark.parametrize(
    "state",
    [
        {"best": np.float64(0.5)},
        {"file": Path("a")},
        {"seen": deque([1])},
        {"count": defaultdict(int)},
        {"key": lambda: 0},
    ],
    ids=lambda state: next(iter(state)),
)
def test_a_state_that_could_not_be_read_again_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(UserError, match="^Mine, which a callback gives, cannot be saved: .* Mend"):
        check_readable({"Theirs": {"step": 3}, "Mine": state})


def test_states_that_are_read_again_are_taken() -> None:
    check_readable({"Mine": {"a": torch.ones(2), "b": [1, 2.5, "c", None, True], "d": {"e": (1,)}}})
