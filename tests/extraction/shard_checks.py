"""What the tests of shards have in common."""

from fake_detector import FakeDetector, assert_same_regions

from bua.extraction import Extractor, Outcome, RegionChoice
from bua.extraction.shards import Shard, ShardMerger, Written
from bua.features import open_features, open_writer


def assert_all_once(events, images, shards, failed=()):
    """Asserts that there is one event for each image, and that the shards have the regions of all but ``failed``."""
    outcomes = [event for event in events if not isinstance(event, Shard)]
    assert sorted(outcome.image.image_id for outcome in outcomes) == [image.image_id for image in images]
    for outcome in outcomes:
        assert isinstance(outcome, Outcome if outcome.image.image_id in failed else Written)
    output = shards.path.with_name("merged")
    with open_writer(output, shards.format, shards.about) as writer:
        merger = ShardMerger(shards, writer)
        for event in events:
            if isinstance(event, Shard):
                assert merger.merge(event) == {}
        assert merger.merge_rest() == {}
        merger.sync()
    assert shards.shards() == []
    merged = open_features(output)
    for image, regions, _ in Extractor(FakeDetector(), RegionChoice())(images):
        if image.image_id not in failed:
            assert_same_regions(merged[image.image_id], regions)
