"""Few-shot tasks: disjoint classes and images, balanced labels, exact pixels; rotations never straddle a split."""

import numpy as np
import pytest
import torch

from amaml_core.samplers import ImageSampler, split_alphabets, split_classes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def coded(classes: int = 12, each: int = 8, side: int = 4, colour: bool = False) -> np.ndarray:
    """Images whose top left corner tells the class and the image number, and that look different in every rotation."""
    images = np.zeros((classes, each, side, side), np.uint8)
    images[:, :, 0, 0] = 10 + np.arange(classes)[:, None]
    images[:, :, 0, 1] = 100 + np.arange(each)
    images[:, :, -1, 0] = 1
    return np.stack([images, images // 2, images // 3], -1) if colour else images


def codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and image number of unrotated coded images (..., 1, H, W)."""
    pixels = (x * 255).round().long()
    return pixels[..., 0, 0, 0] - 10, pixels[..., 0, 0, 1] - 100


def test_shapes_types_and_range():
    tasks = ImageSampler(coded(), way=5, shot=2, query=3, batch=7)(seeded())
    assert tasks.support_x.shape == (7, 10, 1, 4, 4) and tasks.query_x.shape == (7, 15, 1, 4, 4)
    assert tasks.support_x.dtype == torch.float32 and tasks.query_y.dtype == torch.int64
    assert tasks.support_x.min() == 0 and tasks.support_x.max() <= 1


def test_colour_images_get_their_channels_first():
    images = coded(colour=True)
    tasks = ImageSampler(images, way=5, shot=1, query=3, batch=7)(seeded())
    assert tasks.support_x.shape == (7, 5, 3, 4, 4)
    character, number = codes(tasks.support_x)
    expected = torch.from_numpy(images[character.numpy(), number.numpy()]).permute(0, 1, 4, 2, 3) / 255
    assert torch.equal(tasks.support_x, expected)


def test_labels_are_balanced_and_name_one_class_each():
    tasks = ImageSampler(coded(), way=4, shot=3, query=2, batch=50)(seeded())
    assert (torch.nn.functional.one_hot(tasks.support_y).sum(1) == 3).all()
    assert (torch.nn.functional.one_hot(tasks.query_y).sum(1) == 2).all()
    for task in range(50):
        meaning = {}
        for x, y in ((tasks.support_x, tasks.support_y), (tasks.query_x, tasks.query_y)):
            for label, character in zip(y[task].tolist(), codes(x[task])[0].tolist(), strict=True):
                assert meaning.setdefault(label, character) == character
        assert len(set(meaning.values())) == 4


def test_support_and_query_images_are_disjoint():
    tasks = ImageSampler(coded(), way=6, shot=3, query=5, batch=50)(seeded())  # all 8 images of each class
    character, number = codes(torch.cat([tasks.support_x, tasks.query_x], 1))
    together = (character * 8 + number).sort(1).values  # (50, 48)
    assert (together.diff(dim=1) > 0).all()


def test_classes_labels_and_images_are_drawn_uniformly():
    tasks = ImageSampler(coded(), way=3, shot=1, query=1, batch=4000)(seeded(1))
    character, number = codes(tasks.support_x)
    pairs = (character * 3 + tasks.support_y).flatten().bincount(minlength=36)  # which class got which label
    assert ((pairs - 12000 / 36) ** 2 / (12000 / 36)).sum() < 66.6  # chi-square with 35 degrees of freedom, p = 0.001
    images = number.flatten().bincount(minlength=8)
    assert ((images - 1500) ** 2 / 1500).sum() < 24.4  # 7 degrees of freedom


def test_rotations_are_exact_quarter_turns_and_classes_of_their_own():
    images = coded(classes=3)
    sampler = ImageSampler(images, way=12, shot=1, query=1, batch=20, rotations=True)  # all 12 classes in every task
    assert sampler.class_count == 12
    tasks = sampler(seeded())
    pixels = (tasks.support_x[:, :, 0] * 255).round().byte().numpy()  # (20, 12, 4, 4)
    turned = {np.rot90(images[c, i], r).tobytes(): (c, r) for c in range(3) for i in range(8) for r in range(4)}
    for task in pixels:
        assert {turned[image.tobytes()] for image in task} == {(c, r) for c in range(3) for r in range(4)}
    # A class keeps its rotation: support and query image of a label are turned alike.
    queries = (tasks.query_x[:, :, 0] * 255).round().byte().numpy()
    for s, q in zip(pixels.reshape(-1, 4, 4), queries.reshape(-1, 4, 4), strict=True):
        assert turned[s.tobytes()] == turned[q.tobytes()]


def test_a_subset_of_classes_is_all_that_is_drawn_from():
    chosen = torch.tensor([1, 4, 5, 9])
    tasks = ImageSampler(coded(), way=3, shot=1, query=1, batch=200, classes=chosen)(seeded())
    assert codes(tasks.support_x)[0].unique().tolist() == [1, 4, 5, 9]
    rotated = ImageSampler(coded(), way=3, shot=1, query=1, batch=200, classes=chosen, rotations=True)(seeded())
    brightest_but_number = (rotated.support_x * 255).round().long().flatten(2)
    present = brightest_but_number[(brightest_but_number >= 10) & (brightest_but_number < 100)] - 10
    assert present.unique().tolist() == [1, 4, 5, 9]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16])  # as an index, a tensor of bytes would be a mask
def test_classes_may_be_integers_of_any_kind(dtype):
    images, classes = torch.as_tensor(coded()), torch.tensor([3, 1, 7])
    tasks, same = (ImageSampler(images, 2, 1, 1, 4, classes=c)(seeded()) for c in (classes, classes.to(dtype)))
    assert torch.equal(tasks.support_x, same.support_x)


def test_a_memory_map_a_tensor_and_an_array_give_the_same_tasks(tmp_path):
    np.save(tmp_path / "images.npy", coded())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    one, two, three = (
        ImageSampler(images, 5, 1, 2, batch=3, rotations=True)(seeded()) for images in (coded(), mapped, torch.from_numpy(coded()))
    )
    assert equal(one, two) and equal(one, three)


def test_sampling_leaves_the_images_alone():
    images = coded()
    ImageSampler(torch.from_numpy(images), 5, 1, 2, batch=30, rotations=True)(seeded())
    assert (images == coded()).all()


def test_a_seed_gives_the_same_tasks_and_another_seed_others():
    sampler = ImageSampler(coded(), 5, 1, 2, batch=4, rotations=True)
    assert equal(sampler(seeded(3)), sampler(seeded(3))) and not equal(sampler(seeded(3)), sampler(seeded(4)))


def test_a_random_split_is_disjoint_and_complete():
    split = split_classes(1623, seeded(), validation=100)
    assert [len(part) for part in vars(split).values()] == [1100, 100, 423]
    assert torch.equal(torch.cat([split.train, split.validation, split.test]).sort().values, torch.arange(1623))
    plain = split_classes(1623, seeded())
    assert len(plain.train) == 1200 and len(plain.validation) == 0
    assert torch.equal(plain.test, split.test)  # holding out for validation leaves the test classes as they are
    assert not torch.equal(split_classes(1623, seeded(1)).test, plain.test)


def test_rotations_never_straddle_a_split():
    images = coded()
    split = split_classes(12, seeded(), train=8, validation=3)
    seen = {}
    for name, part in vars(split).items():
        tasks = ImageSampler(images, 3, 1, 1, batch=300, rotations=True, classes=part)(seeded())
        pixels = (tasks.support_x * 255).round().long()
        seen[name] = set((pixels[(pixels >= 10) & (pixels < 100)] - 10).tolist())
    assert seen["train"] == set(split.train.tolist()) and seen["test"] == set(split.test.tolist())
    assert not seen["train"] & seen["validation"] and not seen["train"] & seen["test"] and not seen["validation"] & seen["test"]


def test_the_split_by_alphabets_keeps_alphabets_whole():
    alphabets = {"A": "background", "B": "background", "C": "background", "D": "evaluation"}
    classes = [{"alphabet": a, "character": str(i), "split": s} for a, s in alphabets.items() for i in range(4)]
    split = split_alphabets(classes, seeded(), validation=1)
    names = [{classes[i]["alphabet"] for i in part.tolist()} for part in vars(split).values()]
    assert names[2] == {"D"} and len(names[0]) == 2 and len(names[1]) == 1 and names[0] | names[1] == {"A", "B", "C"}
    assert [len(part) for part in vars(split).values()] == [8, 4, 4]
    assert len(split_alphabets(classes, seeded()).train) == 12
    drawn = {tuple(split_alphabets(classes, seeded(s), 1).validation.tolist()) for s in range(20)}
    assert len(drawn) == 3  # any background alphabet can be held out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ImageSampler(coded(), 13, 1, 1, 1), "only 12 classes"),
        (lambda: ImageSampler(coded(), 3, 1, 1, 1, classes=torch.tensor([1, 2])), "only 2 classes"),
        (lambda: ImageSampler(coded(), 5, 4, 5, 1), "only 8 images"),
        (lambda: ImageSampler(coded(), 5, 0, 5, 1), "shot must be"),
        (lambda: ImageSampler(coded().astype(np.float32), 5, 1, 1, 1), "must be uint8"),
        (lambda: ImageSampler(coded()[0], 5, 1, 1, 1), "must be uint8"),
        (lambda: ImageSampler(coded()[:, :, :3], 5, 1, 1, 1, rotations=True), "square"),
        (lambda: ImageSampler(coded(), 1, 1, 1, 1, classes=torch.tensor([1, 12])), "from 0 to 11"),
        (lambda: ImageSampler(coded(), 1, 1, 1, 1, classes=torch.tensor([1, 1])), "different"),
        (lambda: ImageSampler(coded(), 2, 1, 1, 1, classes=torch.tensor([0.5, 1.5])), "must be integers .*float32"),
        (lambda: ImageSampler(coded(), 2, 1, 1, 1, classes=torch.tensor([True, False])), "must be integers .*bool"),
        (lambda: ImageSampler(coded(), 2, 1, 1, 1, classes=torch.tensor([[0, 1], [2, 3]])), r"must be integers .*\(2, 2\)"),
        (lambda: ImageSampler(coded(), 1, 1, 1, 1, classes=torch.tensor(1)), r"must be integers .*\(\)"),
        (lambda: split_classes(1000, seeded()), "leaves none for test"),
        (lambda: split_classes(20, seeded(), train=10, validation=10), "held out"),
        (lambda: split_alphabets([{"alphabet": "A", "split": "background"}], seeded()), "evaluation"),
    ],
)
def test_bad_input_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
