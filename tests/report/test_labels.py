from raykd.config.experiment import parse
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
    kd, routed = kd | {"optim": {"epochs": 4}}, routed | {"optim": {"epochs": 4}}
    assert labels([kd, routed]) == ["kd", "kd anchors=[2,4] one_stage"]
    uneven = routed | {"route": {"anchors": [2, 4], "starts": [0, 1]}}
    assert labels([routed, uneven]) == ["kd", "kd starts=[0,1]"]


TEACHER = {"model": "resnet8x4", "optim": {"epochs": 40}, "data": {"name": "digits"}}


def stage(anchor, after=None, **more):
    """A recipe of a stage that learns from one of the teacher's epochs; None: the last."""
    method = {"name": "kd", "temperature": more.pop("temperature", 4.0)}
    return {
        "model": "resnet8",
        "data": {"name": "digits"},
        "teacher": TEACHER,
        "route": None if anchor is None else {"anchors": [anchor], "starts": [0]},
        "after": after,
        "method": method,
        "optim": {"name": "sgd", "epochs": 4, "lr": more.pop("lr", 0.1)},
    } | more


def test_a_route_of_stages_is_its_anchors():
    staged = stage(None, stage(20, stage(10)))
    at_once = stage(None) | {"route": {"anchors": [10, 20, 40], "starts": [0, 1, 2]}}
    assert labels([stage(None), staged, at_once, stage(10)]) == [
        "kd",
        "kd anchors=[10,20,40] multi_stage",
        "kd anchors=[10,20,40] one_stage",
        "kd anchors=[10]",
    ]
    assert labels([staged, stage(None, stage(10))]) == [
        "kd anchors=[10,20,40]",
        "kd anchors=[10,40]",
    ]


def test_stages_of_one_anchor_are_called_by_the_last():
    def trained(*rates):
        before = None
        for rate in rates:
            before = stage(None, before, lr=rate, temperature=10 * rate)
        return before

    lines = [stage(None), trained(0.1, 0.4), trained(0.1, 0.2), trained(0.3, 0.2)]
    assert labels(lines) == [
        "kd temperature=4.0 lr=0.1",
        "kd temperature=4.0 2 stages lr=0.4 temperature by stage=[1.0,4.0]",
        "kd temperature=2.0 2 stages lr=0.2 temperature by stage=[1.0,2.0]",
        "kd temperature=2.0 2 stages lr=0.2 temperature by stage=[3.0,2.0]",
    ]


def test_a_chain_of_assistants_is_its_networks():
    first = stage(None, model="resnet20")
    second = stage(None, model="resnet14", teacher=first)
    lines = [stage(None, teacher=one) for one in (TEACHER, first, second)]
    assert labels(lines) == ["kd", "kd via resnet20", "kd via resnet20,resnet14"]
    slow = stage(None, teacher=stage(None, model="resnet20", lr=0.01))
    assert labels([*lines[:2], slow]) == [
        "kd",
        "kd via resnet20",
        "kd via resnet20 resnet20.lr=0.01",
    ]


def test_a_search_is_called_by_its_rule_and_by_what_it_found():
    greedy = {"name": "greedy", "stages": "multi_stage", "threshold": 1.6, "measure": "kl"}
    staged = stage(None, stage(20))
    sought = stage(None) | {"rco": greedy}
    assert labels([stage(None), staged, staged | {"rco": greedy}, sought]) == [
        "kd",
        "kd anchors=[20,40] multi_stage",
        "kd greedy anchors=[20,40] multi_stage",
        "kd greedy threshold=1.6 multi_stage",
    ]


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


def test_teachers_are_called_by_what_made_them():
    text = TEXT.replace("{model: resnet8x4}", "TEACHER").replace("kd, {name", "{name", 1)
    given = "{model: resnet8, weights: sha256:0123456789abcdef.pt, outputs: 1000, classes: wordnet}"
    tuned = "{model: resnet8, weights: sha256:fedcba9876543210.pt, optim: {epochs: 3}}"
    teachers = [
        parse(text.replace("TEACHER", teacher), "one").runs[-1].teacher.plain()
        for teacher in (given, tuned, "{model: resnet8x4, optim: {epochs: 5}}")
    ]
    names = labels(teachers)
    assert names[0] == "weights=sha256:0123456789ab"
    assert names[1:] == ["weights=sha256:fedcba987654 epochs=3", "weights=none epochs=5"]
    assert not any(word in name for name in names for word in ("outputs", "classes", "fine_tune"))


def test_fractions_have_four_digits_unless_two_would_be_one():
    def named(*rates):
        base = {"model": "resnet8", "method": {"name": "kd"}}
        return labels([base | {"optim": {"lr": rate}} for rate in rates])

    assert named(0.034123456789, 0.1) == ["kd lr=0.03412", "kd lr=0.1"]
    assert named(0.034123456789, 0.034121) == ["kd lr=0.034123", "kd lr=0.034121"]
