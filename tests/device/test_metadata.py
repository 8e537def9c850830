import pytest

from mdl.device.metadata import DomainMetadata, Metadata
from mdl.errors import UserError

MEAN = (0.25, 0.5, 0.75)
BIRDS = DomainMetadata(("crow", "żuraw"), 12, 15, 72, "crop", MEAN, MEAN)
MODEL = Metadata({"birds": BIRDS, "cars": BIRDS}, {"run": "a_run", "step": 8})


def test_what_was_written_is_read_back() -> None:
    assert Metadata.loads(MODEL.dumps(), "a file") == MODEL


def test_a_misspelt_domain_is_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match="no domain 'bird' in this model; did you mean 'birds'"):
        MODEL.of("bird")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1, "domains": {"a": {}}}'])
def test_other_text_is_refused_with_its_file(text: str) -> None:
    with pytest.raises(UserError, match="model.pte holds no metadata that can be read"):
        Metadata.loads(text, "model.pte")


def test_another_format_is_refused() -> None:
    text = MODEL.dumps().replace('"format": 1', '"format": 99')
    with pytest.raises(UserError, match="format 99; this version of mdl reads format 1"):
        Metadata.loads(text, "model.pte")
