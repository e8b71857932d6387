from raykd.experiment import parse
from raykd.report import gather
from raykd.report.labels import labels
from tests.report.stored import TEXT


def test_labels_name_what_differs_and_no_more():
    base = {"model": "resnet8", "route": None, "data": {"name": "digits", "digest": "a"}}
    kd = base | {"method": {"name": "kd", "temperature": 4.0}}
    skd = base | {"method": {"name": "skd", "temperature": 1.0}}
    more = kd | {"data": {"name": "cifar10", "digest": "b"}}
    routed = kd | {"route": {"anchors": [2, 4], "starts": [0, 2]}}
    assert labels([kd]) == ["kd"]
    assert labels([kd, skd]) == ["kd", "skd"]
    assert labels([kd, more]) == ["kd data=digits", "kd data=cifar10"]
    assert labels([kd, routed]) == ["kd route=none", "kd route.anchors=[2,4] route.starts=[0,2]"]


def test_a_sum_of_methods_is_called_by_its_parts():
    def summed(temperature):
        parts = [{"name": "crd", "width": 8}, {"name": "kd", "temperature": temperature}]
        return {"model": "resnet8", "method": {"name": "combine", "combine": parts}}

    kd = {"model": "resnet8", "method": {"name": "kd", "temperature": 4.0}}
    assert labels([kd, summed(4.0)]) == ["kd", "crd + kd"]
    expected = ["crd + kd kd.temperature=4.0", "crd + kd kd.temperature=2.0"]
    assert labels([summed(4.0), summed(2.0)]) == expected


def over(base, **settings):
    """A recipe of a method over a base."""
    return {"model": "resnet8", "method": {"name": "sakd", "base": base} | settings}


AT = {"name": "at", "weight": 1000.0}
CRD = {"name": "crd", "width": 8}


def test_a_method_over_a_base_is_called_by_both():
    summed = {"name": "combine", "combine": [AT, CRD]}
    recipes = [over(AT), over(CRD), over(summed), {"model": "resnet8", "method": AT}]
    assert labels(recipes) == ["sakd(at)", "sakd(crd)", "sakd(at + crd)", "at"]


def test_the_settings_of_a_base_are_compared_among_those_over_it():
    recipes = [over(AT), over(AT | {"weight": 500.0}), over(CRD), over(CRD | {"width": 16})]
    assert labels(recipes) == [
        "sakd(at) weight=1000.0",
        "sakd(at) weight=500.0",
        "sakd(crd) width=8",
        "sakd(crd) width=16",
    ]
    sums = [{"name": "combine", "combine": [AT, part]} for part in (CRD, CRD | {"width": 16})]
    expected = ["sakd(at + crd) crd.width=8", "sakd(at + crd) crd.width=16"]
    assert labels([over(base) for base in sums]) == expected


def test_the_mode_of_a_method_is_compared_over_every_base():
    recipes = [over(AT, mode="adaptive"), over(AT, mode="random"), over(CRD, mode="adaptive")]
    expected = ["sakd(at) mode=adaptive", "sakd(at) mode=random", "sakd(crd) mode=adaptive"]
    assert labels(recipes) == expected
    assert labels(recipes[1:]) == expected[1:]


def test_a_setting_of_the_base_is_not_taken_for_one_of_the_same_name():
    def warm(own, base):
        return over({"name": "kd", "temperature": base}, temperature=own)

    assert labels([warm(4.0, 4.0), warm(4.0, 2.0), warm(1.0, 4.0)]) == [
        "sakd(kd) temperature=4.0 base.temperature=4.0",
        "sakd(kd) temperature=4.0 base.temperature=2.0",
        "sakd(kd) temperature=1.0 base.temperature=4.0",
    ]


def test_a_setting_that_only_some_have_is_named():
    kd = {"model": "resnet8", "clip": None, "optim": {"name": "sgd", "lr": 0.1}}
    other = kd | {"clip": 1.0, "optim": {"name": "adamw", "lr": 0.001}}
    assert labels([kd, other]) == ["clip=none optim=sgd", "clip=1.0 optim=adamw"]
    slow = kd | {"optim": {"name": "sgd", "lr": 0.01}}
    assert labels([kd, slow]) == ["lr=0.1", "lr=0.01"]


def test_a_digest_is_named_where_nothing_else_differs():
    plain = {"model": "resnet8", "data": {"name": "folder", "limit": 9, "digest": "a"}}
    other = {"model": "resnet8", "data": {"name": "folder", "limit": 9, "digest": "b"}}
    fewer = {"model": "resnet8", "data": {"name": "folder", "limit": 5, "digest": "b"}}
    assert labels([plain, other]) == ["data.digest=a", "data.digest=b"]
    assert labels([plain, fewer]) == ["data.limit=9", "data.limit=5"]


def test_different_groups_have_different_names(store):
    text = TEXT.replace("grid:", "grid:\n  run.model: [resnet8, resnet14]\n  run.views: [1, all]")
    report = gather(store, parse(text, "names"))
    names = [report.called(group) for group in report.students]
    assert len(set(names)) == len(names) == 16
    assert names[1] == "kd views=1 resnet8"
