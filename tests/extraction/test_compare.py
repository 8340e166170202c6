import dataclasses

import numpy as np
import pytest

from bua.errors import InputError
from bua.extraction.compare import (
    Bounds,
    compare_features,
    compare_regions,
    find_differences,
    format_table,
    label_agreement,
)
from bua.structures import Regions


def regions(image_id=7, n=6, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (n, 2))
    return Regions(
        image_id=image_id,
        width=400,
        height=300,
        boxes=np.concatenate([corners, corners + rng.uniform(20, 90, (n, 2))], axis=1).astype(np.float32),
        features=rng.exponential(size=(n, 16)).astype(np.float32),
        object_ids=rng.integers(0, 1600, n),
        object_scores=rng.random(n).astype(np.float32),
        attribute_ids=rng.integers(0, 400, n),
        attribute_scores=rng.random(n).astype(np.float32),
    )


def rows(source, order):
    fields = {
        field.name: getattr(source, field.name)[order]
        for field in dataclasses.fields(source)
        if isinstance(getattr(source, field.name), np.ndarray)
    }
    return dataclasses.replace(source, **fields)


def problems(found, reference, bounds=None):
    return find_differences([compare_regions(found, reference)], bounds or Bounds())


def test_the_same_regions_in_another_order_agree():
    reference = regions()
    assert problems(rows(reference, [3, 1, 0, 5, 4, 2]), reference) == []


def test_a_moved_box_is_named():
    reference, found = regions(), regions()
    found.boxes[4, 2] += 0.6
    (line,) = problems(found, reference)
    assert line.startswith("image 7: region 4: its box is 0.6")
    assert problems(found, reference, Bounds(box_distance=0.7)) == []


def test_a_changed_feature_is_named():
    reference, found = regions(), regions()
    found.features[2] = found.features[2][::-1]
    (line,) = problems(found, reference)
    assert line.startswith("image 7: region 2: its feature has a cosine of 0.")


def test_a_feature_that_is_not_finite_fails():
    reference, found = regions(), regions()
    found.features[2, 0] = np.nan
    assert any("region 2" in line for line in problems(found, reference))


def test_a_dropped_and_an_added_region_are_named():
    reference = regions()
    assert problems(rows(reference, [0, 1, 3, 4, 5]), reference) == ["image 7: region 2 of the reference was not found"]
    assert problems(reference, rows(reference, [0, 1, 3, 4, 5])) == ["image 7: 1 regions are not in the reference"]


def test_labels_count_over_all_images():
    references = {i: regions(i, 100, seed=i) for i in range(2)}
    found = {i: regions(i, 100, seed=i) for i in range(2)}
    found[1].object_ids[:2] += 1
    comparisons = compare_features(found, references)
    assert label_agreement(comparisons, "object") == pytest.approx(0.99)
    assert find_differences(comparisons, Bounds()) == []
    found[1].object_ids[2] += 1
    assert find_differences(compare_features(found, references), Bounds()) == [
        "objects: 98.50 % of the regions have the reference's label"
    ]


def test_features_without_labels_and_images_without_regions_compare():
    reference = rows(regions(), [])
    assert problems(reference, reference) == []
    assert "-" in format_table([compare_regions(reference, reference)])
    plain = dataclasses.replace(regions(), object_ids=None, attribute_ids=None)
    assert problems(plain, regions()) == []


def test_ids_of_lxmert_are_matched_with_those_of_coco():
    reference = {"COCO_train2014_000000000007": regions("COCO_train2014_000000000007")}
    assert find_differences(compare_features({7: regions(7)}, reference), Bounds()) == []
    with pytest.raises(InputError, match="image COCO_train2014_000000000007: is in the reference"):
        compare_features({8: regions(8)}, reference)


def test_features_of_another_dimension_are_refused():
    other = regions()
    other.features = other.features[:, :8]
    with pytest.raises(InputError, match="the feature dimension is 8, and 16 in the reference"):
        compare_regions(other, regions())
