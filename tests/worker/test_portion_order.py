"""One report from those of the parts of a replica."""

import pytest

from dbdask.models.part_evaluation import ELSEWHERE
from dbdask.worker.batch_replica import BundleReport
from dbdask.worker.batch_replica import merged as merged_bundles
from dbdask.worker.portion_order import PortionReport, merged


def portion(part, **values):
    report = PortionReport(0, 4, f"w{part}", part=part, **values)
    report.spent.computing = 1.0
    return report


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_portion_is_done_where_every_part_has_done_it(order):
    reports = [
        portion(0, finished=True, next_step=7, pushes=5, examples=90, refused=[(3, ELSEWHERE)]),
        portion(1, finished=True, next_step=6, pushes=4, examples=90, refused=[(3, "bias")]),
        portion(2, finished=False, next_step=7, pushes=5, examples=90, refused=[(3, ELSEWHERE)]),
    ]
    for report, staleness in zip(reports, ([1], [2], [0]), strict=True):
        report.staleness += staleness
    whole = merged([reports[number] for number in order])
    assert not whole.finished and whole.next_step == 6 and whole.pushes == 4
    assert whole.worker == "w0" and whole.examples == 90 and whole.spent.computing == 3.0
    assert {part: spent.computing for part, spent in whole.by_part.items()} == dict.fromkeys(
        range(3), 1.0
    )
    assert whole.refused == [(3, "bias")] and sorted(whole.staleness) == [0, 1, 2]
    assert [report.staleness for report in reports] == [[1], [2], [0]]


def test_trouble_of_any_part_is_the_trouble_of_all():
    reports = [portion(0), portion(1, trouble="ShardLost: it is gone")]
    assert merged(reports).trouble == "ShardLost: it is gone"
    assert merged(reports[:1]).trouble == ""


def test_a_bundle_is_done_where_every_part_has_pushed_it():
    reports = [
        BundleReport("b", finished=True, part=1, working=3.0, pushing=1.0, repeated=True),
        BundleReport("a", finished=True, part=0, working=2.0, pushing=2.0),
    ]
    reports[0].spent.exchanging, reports[1].spent.exchanging = 0.25, 0.5
    reports[0].refusal, reports[1].refusal = "step 1: bias", f"step 1: {ELSEWHERE}"
    whole = merged_bundles(reports)
    assert whole.finished and whole.repeated and whole.worker == "a"
    assert (whole.working, whole.pushing, whole.spent.exchanging) == (3.0, 2.0, 0.75)
    assert {part: spent.exchanging for part, spent in whole.by_part.items()} == {0: 0.5, 1: 0.25}
    assert whole.refusal == "step 1: bias"
    reports[0].finished = False
    assert not merged_bundles(reports).finished
