import numpy as np

from mdl.device.agreement import compare


def test_a_model_agrees_with_itself() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = compare(logits, logits, np.zeros(5, dtype=np.int64))
    assert (found.images, found.greatest_difference, found.same_answer) == (5, 0.0, 1.0)
    assert found.trained_accuracy == found.exported_accuracy


def test_images_without_a_label_count_in_no_accuracy() -> None:
    trained = np.eye(3, dtype=np.float32)
    exported = trained[[0, 1, 0]]
    found = compare(trained, exported, np.array([0, -1, 2]))
    assert (found.trained_accuracy, found.exported_accuracy) == (1.0, 0.5)
    assert found.same_answer == 2 / 3
    assert found.greatest_difference == 1.0
