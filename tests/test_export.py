"""Exports, whole, checked against the trained network, and what is refused."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mdl import export, fit, predict
from mdl.device.agreement import compare
from mdl.device.executorch_model import ExecutorchModel
from mdl.device.model import open_model
from mdl.device.onnx_model import ALL_DOMAINS, OnnxModel, open_session
from mdl.device.preparation import prepare
from mdl.device.torch_files import ProgramModel, load_network, write_program
from mdl.errors import UserError
from mdl.recipe_files import load_recipe
from mdl.run_folder import RunFolder
from mdl.trained import Trained

pytestmark = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs the optional packages of '.[device]'"
)

DOMAINS = ["birds", "cars", "types"]


@pytest.fixture(scope="module")
def exported(finished_run: Path) -> Path:
    export.main([str(finished_run), "--images", "6"])
    return finished_run / "export"


@pytest.fixture
def image(finished_run: Path, tmp_path: Path) -> Path:
    contents, _ = Trained.open(finished_run).images("cars", "val", 1)
    file = tmp_path / "car.png"
    file.write_bytes(contents[0])
    return file


def test_every_export_answers_as_the_trained_network(exported: Path) -> None:
    record = json.loads((exported / "export.json").read_text())
    executorch, onnx, *others = export.TARGETS
    assert list(record["exports"]) == [executorch, onnx, "onnx, one graph", *others]
    for of in record["exports"].values():
        assert list(of["agreement"]) == DOMAINS
        for agreement in of["agreement"].values():
            assert agreement["greatest_difference"] < 1e-4
            assert agreement["exported_accuracy"] == agreement["trained_accuracy"]
            assert agreement["images"] == 6


def test_nothing_half_written_is_left(exported: Path) -> None:
    assert [file for file in exported.rglob("*") if "partial" in file.name] == []


def test_the_sizes_are_those_of_the_files(exported: Path) -> None:
    for of in json.loads((exported / "export.json").read_text())["exports"].values():
        for name, size in of["files"].items():
            (file,) = exported.rglob(name) if name != "architecture.json" else [None]
            assert file is None or file.stat().st_size == size
        if of["tensors"] is not None:
            once, apart = of["tensors"]
            assert once < apart


def test_equal_tensors_of_all_graphs_lie_at_one_place(exported: Path) -> None:
    import onnx

    content, places = (exported / "onnx" / "weights.bin").read_bytes(), set()
    for file in (exported / "onnx").glob("*.onnx"):
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                places.add((int(where["offset"]), int(where["length"])))
    tensors = [content[first : first + length] for first, length in places]
    assert len(tensors) == len(set(tensors)) > 10


def test_one_graph_answers_for_all_domains(exported: Path, image: Path) -> None:
    model = OnnxModel(exported / "onnx")
    session = open_session(exported / "onnx" / ALL_DOMAINS)
    colours = prepare(image.read_bytes(), model.metadata("cars").domain("cars"))
    together = session.run(None, {"image": colours})
    names = [of.name for of in session.get_outputs()]
    assert names == [f"logits_{domain}" for domain in DOMAINS]
    for domain, logits in zip(DOMAINS, together, strict=True):
        assert np.allclose(logits, model.logits(domain, colours), atol=1e-5)


def test_one_method_answers_for_all_domains_where_batch_norm_is_shared(
    finished_run: Path, exported: Path, image: Path, tmp_path: Path
) -> None:
    assert ExecutorchModel(exported / "model.pte").together is None  # nothing is common
    words = ["recipes/mpnas_retrain.yaml", str(finished_run / "recipe.yaml")]
    fit.main([*words, "network.batch_norm=shared", f"runs_dir={tmp_path}", "name=shared"])
    export.main([str(tmp_path / "shared"), "--to", "executorch", "--images", "3"])
    record = json.loads((tmp_path / "shared" / "export" / "export.json").read_text())["exports"]
    assert list(record) == ["executorch", "executorch, one method"]
    model = ExecutorchModel(tmp_path / "shared" / "export" / "model.pte")
    assert model.domains == DOMAINS
    every = model.together
    assert every is not None and every.domains == DOMAINS
    colours = prepare(image.read_bytes(), model.metadata("cars").domain("cars"))
    for domain in DOMAINS:
        expected = model.logits(domain, colours)
        assert np.allclose(every.logits(domain, colours), expected, atol=1e-5)


def test_a_part_of_the_domains_is_exported_by_itself(finished_run: Path, tmp_path: Path) -> None:
    words = ["--domains", "types", "--out", str(tmp_path), "--images", "3", "--to"]
    export.main([str(finished_run), *words, "safetensors", "onnx"])
    # of another export, over the weights that were there
    shutil.copy(tmp_path / "onnx" / "types.onnx", tmp_path / "onnx" / "birds.onnx")
    export.main([str(finished_run), *words, "safetensors", "onnx"])
    assert OnnxModel(tmp_path / "onnx").domains == ["types"]
    export.main([str(finished_run), *words, "safetensors"])
    known = json.loads((tmp_path / "export.json").read_text())["exports"]
    assert set(known) == {"safetensors", "onnx"}  # of the same checkpoint
    with pytest.raises(UserError, match="did you mean 'cars'"):
        export.main([str(finished_run), "--domains", "car"])


def test_graphs_and_weights_of_others_are_not_written_over(
    finished_run: Path, tmp_path: Path
) -> None:
    words = [str(finished_run), "--domains", "types", "--out", str(tmp_path), "--to", "onnx"]
    other = tmp_path / "onnx" / "other.onnx"
    other.parent.mkdir()
    for file in (other, tmp_path / "onnx" / "weights.bin"):
        file.write_bytes(b"of another project")
        with pytest.raises(UserError, match=r"--out, or move it away"):
            export.main(words)
        assert file.read_bytes() == b"of another project"
        file.unlink()
    (tmp_path / "export.json").write_text('{"exports": {')
    with pytest.raises(UserError, match=r"export\.json cannot be read as a record of exports"):
        export.main(words)


def test_a_model_that_answers_otherwise_is_removed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(finished_run), "--out", str(tmp_path), "--to", "safetensors"]
    export.main([*words, "program"])
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="answered otherwise than the trained network"):
        export.main(words)
    assert not (tmp_path / "torch" / "model.safetensors").exists()
    known = json.loads((tmp_path / "export.json").read_text())["exports"]
    assert list(known) == ["program"]  # nothing vouches for what was removed


def test_answers_that_are_no_numbers_agree_with_nothing(tmp_path: Path) -> None:
    logits = np.zeros((2, 3), np.float32)
    files = [tmp_path / name for name in ("one.pte", "two.pt2", "three.pte")]
    found = []
    for file, wrong in zip(files, (np.nan, 1.0, 0.0), strict=True):
        file.touch()
        of = compare(logits, logits + np.float32(wrong), np.zeros(2, np.int64))
        found.append(export.Exported(file.stem, [file], "folded", None, {"a": of}))
    with pytest.raises(UserError, match=r"differed in one of 'a' by nan, two of 'a' by 1; expect"):
        export._check_agreement(found, tmp_path / "export.json")
    assert [file.exists() for file in files] == [False, False, True]


def test_more_images_than_a_batch_has_are_answered(finished_run: Path, tmp_path: Path) -> None:
    """A program takes any number of images."""
    trained = Trained.open(finished_run)
    paths = trained.plain_paths("folded", ["cars"])
    file = tmp_path / "many.pt2"
    write_program(file, paths, trained.metadata.of("cars"))
    side = trained.metadata.domain("cars").image_size
    many = np.zeros((5000, 3, side, side), np.float32)
    assert len(ProgramModel(file).logits("cars", many)) == 5000


def test_a_file_whose_name_is_no_text_is_answered(exported: Path, image: Path) -> None:
    odd = os.fsencode(image.parent) + b"/caf\xe9.png"
    shutil.copy(image, odd)
    words = [sys.executable, "-m", "mdl.predict", str(exported / "onnx"), "--domain", "cars"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    for given, by in (([*words, str(image.parent)], b""), ([*words, "-"], odd + b"\n")):
        done = subprocess.run(given, capture_output=True, input=by, env=strict, check=True)
        names = [os.fsencode(json.loads(line)["image"]) for line in done.stdout.splitlines()]
        assert odd in names


def test_a_search_and_an_unfinished_run_are_refused(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "scores.json").unlink()
    with pytest.raises(UserError, match="is not finished: scores after 0 of 8 steps"):
        export.main([str(run)])
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("phase: retrain", "phase: search"))
    with pytest.raises(UserError, match="is the run of a search") as told:
        export.main([str(run)])
    words = shlex.split(str(told.value).partition("python -m mdl.fit ")[2])
    retrained = load_recipe(words)  # what it advises to type
    assert retrained.data.root == RunFolder(finished_run).recipe().data.root
    assert retrained.architecture_file == str(run / "architecture.json")


def test_a_missing_package_is_named_with_its_remedy(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, target in [("executorch", "executorch"), ("onnxscript", "onnx")]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package}.*pip install -c constraints.txt"):
            words = ["--to", "safetensors", target, "--out", str(tmp_path)]
            export.main([str(finished_run), *words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.pte", "onnx/cars.onnx", "onnx/weights.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_file_cut_short_is_refused(
    exported: Path, tmp_path: Path, image: Path, name: str, kept: float
) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    file = tmp_path / "copy" / name
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    model = tmp_path / "copy" / name.split("/")[0]
    with pytest.raises(UserError, match=r"cut short|no ExecuTorch program|cannot be loaded"):
        predict.main([str(model), "--domain", "cars", str(image)])


def test_weights_cut_short_or_of_nothing_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No architecture file at"):
        load_network(tmp_path)
    shutil.copytree(exported / "torch", tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read.*cut short; export again"):
        load_network(tmp_path / "copy")


@pytest.mark.parametrize("model", ["model.pte", "onnx", "onnx/cars.onnx"])
def test_predictions_are_lines_of_json_with_names_of_classes(
    exported: Path, image: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    predict.main([str(exported / model), "--domain", "cars", "--top", "2", str(image)])
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert (answer["image"], answer["domain"]) == (str(image), "cars")
    first, second = answer["top"]
    assert re.fullmatch(r"class\d", first["class"])
    assert 1 >= first["probability"] >= second["probability"] >= 0


def test_both_runtimes_say_the_same(exported: Path, image: Path) -> None:
    models = [open_model(exported / name) for name in ("model.pte", "onnx")]
    for domain in DOMAINS:
        one, other = (predict.answer(model, domain, image, 2) for model in models)
        assert [of["class"] for of in one["top"]] == [of["class"] for of in other["top"]]


def test_onnx_is_predicted_without_torch_and_what_trains(
    exported: Path, image: Path, tmp_path: Path
) -> None:
    """In a process of its own that cannot import them; names come on standard input."""
    shutil.copy(image, tmp_path / "second.png")
    program = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'omegaconf', 'simplejpeg', 'rich', 'yaml', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "from mdl.predict import main\n"
        f"main([{str(exported / 'onnx')!r}, '--all-domains', '-'])\n"
    )
    names = f"{image}\n{tmp_path / 'second.png'}\n"
    done = subprocess.run(
        [sys.executable, "-c", program], input=names, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [of["domain"] for of in answers] == 2 * DOMAINS


def test_a_bad_image_is_told_and_the_others_are_answered(
    exported: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = image.with_name("bad.png")
    bad.write_text("no image")
    with pytest.raises(UserError, match="1 of 2 images had no answer"):
        predict.main([str(exported / "onnx"), "--domain", "cars", str(image.parent)])
    said = capsys.readouterr()
    assert "bad.png is no image that can be read: none of the kinds" in said.err
    assert [json.loads(line)["image"] for line in said.out.splitlines()] == [str(image)]


def test_an_image_on_standard_input_is_told_from_names(
    exported: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(exported / "onnx"), "--domain", "cars", "-"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\0b.png\n"))
    with pytest.raises(UserError, match="Standard input is no list of files: .* a name on each"):
        predict.main(words)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{image}\n\n"))
    capsys.readouterr()
    predict.main(words)
    assert json.loads(capsys.readouterr().out)["image"] == str(image)


def test_an_image_that_is_not_there_is_told(
    exported: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="1 of 1 images had no answer"):
        predict.main([str(exported / "onnx"), "--domain", "cars", str(image.with_name("no.png"))])
    assert "no.png cannot be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--top", "0"], ["--top", "-1"], ["--top", "all"]])
def test_a_number_of_classes_below_one_is_refused(
    image: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        predict.main(["model.pte", "--domain", "cars", str(image), *words])
    assert ended.value.code == 2
    assert "expected a whole number, at least 1" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_ends_the_answers(
    exported: Path, image: Path, tmp_path: Path
) -> None:
    for number in range(20):
        shutil.copy(image, tmp_path / f"{number}.png")
    words = [sys.executable, "-m", "mdl.predict", str(exported / "onnx"), "--all-domains"]
    told, ended = subprocess.PIPE, subprocess.PIPE
    with subprocess.Popen([*words, str(tmp_path)], stdout=told, stderr=ended, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        assert json.loads(running.stdout.readline())["domain"] == DOMAINS[0]
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 0


def test_the_python_calls_of_the_page_answer(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of docs/on-device.md, with a domain, size and image of this run."""
    page = Path("docs/on-device.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(exported.parent)
    for block in blocks:
        own = block.replace("digits", "cars").replace("32, 32", "12, 12")
        own = own.replace("colours = ...", "colours = numpy.zeros((1, 3, 12, 12), 'float32')")
        names: dict[str, object] = {}
        exec(own, names)
        logits = names["logits"]
        assert tuple(logits.shape) == (1, 4)  # type: ignore[attr-defined]
    assert re.match(r"class\d", capsys.readouterr().out)


def test_a_folder_above_the_models_is_refused_with_their_names(exported: Path) -> None:
    with pytest.raises(UserError, match=rf"wrote: {exported / 'onnx'} or {exported / 'model.pte'}"):
        open_model(exported)


def test_what_is_no_model_is_refused(exported: Path, image: Path, tmp_path: Path) -> None:
    for model, words in {
        str(image): "is no exported model",
        str(tmp_path / "nowhere.pte"): "No model at",
        str(tmp_path / "nowhere"): "No model at",
        str(exported / "onnx" / ALL_DOMAINS): "Name its folder",
        str(tmp_path): "No .onnx file at",
    }.items():
        with pytest.raises(UserError, match=words):
            predict.main([model, "--domain", "cars", str(image)])
    with pytest.raises(UserError, match="did you mean 'cars'"):
        predict.main([str(exported / "onnx"), "--domain", "car", str(image)])
    with pytest.raises(UserError, match="did you mean 'cars'"):
        ExecutorchModel(exported / "model.pte").metadata("car")


def test_quantised_files_answer_nearly_as_the_trained_network(
    finished_run: Path, tmp_path: Path, exported: Path
) -> None:
    words = ["--to", *export.INT8_TARGETS, "--out", str(tmp_path), "--images", "10"]
    export.main([str(finished_run), *words])
    record = json.loads((tmp_path / "export.json").read_text())["exports"]
    assert list(record) == list(export.INT8_TARGETS)
    for of in record.values():
        for agreement in of["agreement"].values():
            assert 0 < agreement["greatest_difference"] < 0.2
    # of so small a network the programs themselves are the most
    small, large = tmp_path / "onnx_int8" / "weights.bin", exported / "onnx" / "weights.bin"
    assert small.stat().st_size < large.stat().st_size / 2


def test_codes_of_shared_weights_are_stored_once(finished_run: Path, tmp_path: Path) -> None:
    """Though batch norm of each domain is folded into them: 'gated' is on all three paths."""
    import onnx

    words = ["--to", "onnx-int8", "--out", str(tmp_path), "--images", "2"]
    export.main([str(finished_run), *words])
    places = []
    for domain in DOMAINS:
        graph = onnx.load(tmp_path / "onnx_int8" / f"{domain}.onnx", load_external_data=False).graph
        (projection,) = (
            {entry.key: entry.value for entry in tensor.external_data}
            for tensor in graph.initializer
            if "layer0" in tensor.name
            and "conv_pwl" in tensor.name
            and "quantized" in tensor.name
            and "bias" not in tensor.name
        )
        places.append(projection.get("offset", "0"))  # none: at the start
    assert len(set(places)) == 1
