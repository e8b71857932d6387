"""Times of a plan that follow from the recipe once they are measured."""

from raykd.config.scale import Scale
from raykd.methods import METHODS
from raykd.planning.estimate import Rates
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.tasks import Retrieval
from tests.small import digits, student_run


def test_rankings_are_counted_for_each_evaluation_and_every_pair_of_images(tmp_path):
    store = Store(tmp_path)
    rates, method = Rates(store, Scale()), METHODS["embed_distill"](name="embed_distill")
    often, seldom = (
        student_run(
            store, method, task=Retrieval(), optim=Optim(epochs=6, batch=32, evaluate_every=every)
        )
        for every in (1, 3)
    )
    assert rates.rankings(often) > rates.rankings(seldom) > 0
    # Six evaluations and two, and once what follows from the teacher's embeddings alone.
    once = (3 * rates.rankings(seldom) - rates.rankings(often)) / 2
    assert 0 < once < rates.rankings(seldom)
    # 180 test images, and 899: each is compared with all, at one measured time of 512 or fewer.
    more = often.model_copy(update={"data": digits(store, limit=96, holdout=0.5)})
    assert rates.rankings(more) > rates.rankings(often)
    assert rates.rankings(student_run(store)) == 0
